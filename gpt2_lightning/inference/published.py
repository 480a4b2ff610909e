"""Published figures, and whether one of ours may stand beside them."""

from dataclasses import dataclass
from typing import Literal

from gpt2_lightning.data.wikitext import RAW_SHA256

ProtocolName = Literal["disjoint", "sliding", "articles", "training"]

# By the SHA-256 of their original text.
OFFICIAL_TEXTS = {sha256: f"WikiText-2 raw, {split}" for split, sha256 in RAW_SHA256.items()}


@dataclass(frozen=True)
class Published:
    """A figure that somebody has published, with how it was come by.

    Attributes:
        model: Hub id.
        text: Name of the text, one of `OFFICIAL_TEXTS`.
        protocol: How the text was scored.
        context: Tokens of a window.
        stride: Tokens by which the window moved on.
        figure: Key of the figure on our card.
        value: The figure, as printed there.
        digits: Decimals that were printed.
        source: Address.
    """

    model: str
    text: str
    protocol: ProtocolName
    context: int
    stride: int | None
    figure: str
    value: float
    digits: int
    source: str


_TEST = "WikiText-2 raw, test"
_HUB_PAGE = "https://huggingface.co/docs/transformers/perplexity"
# GPT-2's own paper is left out: its text was changed by detokenizers that were not published.
# So is distilgpt2's model card: it names a figure after fine-tuning, and no method.
PUBLISHED: tuple[Published, ...] = (
    Published(
        *("openai-community/gpt2", _TEST, "disjoint", 1024, 1024, "token_perplexity", 29.94, 2),
        source="https://github.com/karpathy/llm.c/pull/276",
    ),
    Published(
        *("openai-community/gpt2", _TEST, "sliding", 1024, 512, "token_perplexity", 25.2, 1),
        source="https://allenlu2009.github.io/genai/2025/01/15/Perplexity_Code",
    ),
    Published(
        *("openai-community/gpt2-large", _TEST, "disjoint", 1024, 1024, "token_perplexity", 19.44),
        digits=2,
        source=_HUB_PAGE,
    ),
    Published(
        *("openai-community/gpt2-large", _TEST, "sliding", 1024, 512, "token_perplexity", 16.44),
        digits=2,
        source=_HUB_PAGE,
    ),
)


def comparability(
    *,
    text: str | None,
    cleaning: str,
    protocol: ProtocolName,
    reading: str,
    dtype: str,
    whole: bool,
) -> str:
    """Say with which published figures a score may be compared, or why with none.

    Args:
        text: Name of the text, if it is one of `OFFICIAL_TEXTS`.
        cleaning: Name of the cleaner.
        protocol: How the text was scored.
        reading: How its rows were read, in words.
        dtype: Type of the weights.
        whole: Whether what was predicted are the text's every word and byte.
    """
    never = "not comparable with published figures, because "
    if cleaning != "none":
        return f"{never}--data.cleaning {cleaning} has changed the text"
    if protocol == "training":
        return f"{never}its blocks are those of the run; --protocol sliding or articles would be"
    if text is None:
        return f"{never}the text is not an official one (by its sha256)"
    note = "" if dtype == "fp32" else f" ({dtype}: within about half a percent)"
    if protocol == "articles":
        if not whole:
            return f"{never}the tokenizer is not byte-level and loses text"
        return (
            f"comparable with: word and byte perplexity and bits per byte of "
            f"lm-evaluation-harness' wikitext task on {text}, at the same maximal length{note}"
        )
    return (
        f"comparable with: token perplexities of models with the same tokenizer on {text}, "
        f"{reading}, at the same context and stride{note}"
    )


def published_for(model: str) -> list[Published]:
    """Return the published figures of a model, by its Hub id, or the folder's name."""
    name = model.rstrip("/").rpartition("/")[2]
    return [row for row in PUBLISHED if row.model.rpartition("/")[2] == name]
