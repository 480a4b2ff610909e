"""Our figures beside published ones: does this pipeline measure what the literature measures?"""

from dataclasses import dataclass

from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.card import Card
from gpt2_lightning.inference.device import DtypeName
from gpt2_lightning.inference.published import PUBLISHED, Published, published_for

# Share of the figure by which another machine's arithmetic may differ, beside the printed digits.
TOLERANCES: dict[DtypeName, float] = {"fp32": 0.001, "bf16": 0.005}
CAUSES = (
    "other weights than the published ones (a fine-tuned model under the same name)",
    "another tokenizer, or one that adds a token of its own to every text",
    "another context or stride than the figure's",
    "rows joined otherwise than with two newlines",
    "text that is not the official raw split: <unk> for rare words, cleaned or lower-cased",
)


@dataclass(frozen=True)
class Finding:
    """A published figure and ours.

    Attributes:
        published: What was expected.
        measured: What was got.
        agrees: Whether they agree, up to the digits printed and the arithmetic.
    """

    published: Published
    measured: float
    agrees: bool

    def __str__(self) -> str:
        wanted = self.published
        off = 100 * (self.measured / wanted.value - 1)
        found = f"{self.measured:.{wanted.digits}f}"
        verdict = (
            "this pipeline measures what the literature measures"
            if self.agrees
            else f"{off:+.2f} % off"
        )
        stride = "" if wanted.stride is None else f", stride {wanted.stride}"
        return (
            f"{wanted.figure.replace('_', ' ')}, {wanted.protocol}, context {wanted.context}"
            f"{stride}: expected {wanted.value:.{wanted.digits}f}, got {found}: {verdict} "
            f"({wanted.source})"
        )


def wanted_figures(model: str) -> list[Published]:
    """Return the published figures of a model.

    Raises:
        UsageError: If there are none.
    """
    if found := published_for(model):
        return found
    names = ", ".join(dict.fromkeys(row.model for row in PUBLISHED))
    raise UsageError(
        f"--reference: no published figure is known of {model}. Known are those of {names}; a "
        "folder with one of these models is known by its name."
    )


def check(published: Published, card: Card, dtype: DtypeName) -> Finding:
    """Put a figure of ours beside the published one.

    Raises:
        UsageError: If it is of another text, or of a cleaned one.
    """
    if card.text != published.text or card.cleaning != "none":
        raise UsageError(
            f"--data.source {card.source}: the published figures are of {published.text}, as it "
            f"is; this is {card.text or 'another text'} (sha256 {card.sha256[:12]}...), cleaning "
            f"{card.cleaning}. Use --data.source Salesforce/wikitext --data.subset "
            "wikitext-2-raw-v1, or a folder with its parquet files, and --data.cleaning none."
        )
    measured = float(getattr(card, published.figure))
    margin = 0.5 * 10**-published.digits + TOLERANCES[dtype] * published.value
    return Finding(published, measured, abs(measured - published.value) <= margin)
