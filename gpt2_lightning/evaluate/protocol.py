"""How a text is scored, which text it is, and the published figures it compares with."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2_lightning.data.articles import RAW_SHA256, JoinerName
from gpt2_lightning.data.cleaning import CleaningName
from gpt2_lightning.errors import UsageError

ProtocolName = Literal["disjoint", "sliding", "articles", "training"]

# By the SHA-256 of their original text.
OFFICIAL_TEXTS = {sha256: f"WikiText-2 raw, {split}" for split, sha256 in RAW_SHA256.items()}

_TEST = "WikiText-2 raw, test"
_HUB_PAGE = "https://huggingface.co/docs/transformers/perplexity"

# settings of a run that also apply to another text, and those that say where its own text is
FORMAT_SETTINGS = ("cleaning", "documents", "blocks", "block_size", "attend")
SOURCE_SETTINGS = (
    *("source", "subset", "revision", "text_column"),
    *("validation_source", "test_source"),
)
CHOICES = {
    "cleaning": get_args(CleaningName),
    "documents": ("file", "line"),
    "blocks": ("pack", "pad"),
    "attend": ("block", "document"),
}


@dataclass(frozen=True)
class Published:
    """A published figure, and how it was measured.

    Attributes:
        model: Hub id.
        text: Name of the text, one of `OFFICIAL_TEXTS`.
        protocol: How the text was scored.
        context: Tokens of a window.
        stride: Tokens by which the window moved.
        figure: Key of the figure on our card.
        value: The figure, as printed there.
        digits: Printed decimals.
        source: URL.
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


# Not GPT-2's own paper, whose text was changed by unpublished detokenizers, nor distilgpt2's model
# card, whose figure is after fine-tuning and without a method.
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
    """Return which published figures a score may be compared with, or why there are none.

    Args:
        text: Name of the text, if it is one of `OFFICIAL_TEXTS`.
        cleaning: Name of the cleaner.
        protocol: How the text was scored.
        reading: How its rows were read, in words.
        dtype: Type of the weights.
        whole: Whether every word and byte of the text was predicted.
    """
    never = "not comparable with published figures, because "
    if cleaning != "none":
        return f"{never}--data.cleaning {cleaning} has changed the text"
    if protocol == "training":
        return (
            f"{never}the blocks are the run's; --protocol sliding or articles would be comparable"
        )
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


EvaluatedSplit = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class Protocol:
    """How a text is cut into windows.

    Attributes:
        name: See docs/metrics.md.
        context: Tokens of a window; null is the model's positions.
        stride: Tokens by which a sliding window moves; null is half the context.
        joiner: Between rows, if they are joined.
    """

    name: ProtocolName
    context: int | None = None
    stride: int | None = None
    joiner: JoinerName | None = None

    def check(self) -> None:
        """Raise UsageError if an option does not fit the protocol."""
        for flag, value in (("context", self.context), ("stride", self.stride)):
            if value is not None and value < 1:
                raise UsageError(f"--{flag} {value}: must be >= 1.")
        if self.context == 1 and self.name in ("disjoint", "sliding"):
            raise UsageError("--context 1: a window of one token predicts none. Try 1024.")
        if self.stride is not None and self.name != "sliding":
            raise UsageError(
                f"--stride {self.stride}: --protocol {self.name} has no sliding windows. Leave it "
                "out, or choose --protocol sliding."
            )
        if self.joiner is not None and self.name in ("articles", "training"):
            raise UsageError(
                f"--joiner {self.joiner}: --protocol {self.name} joins no rows. Leave it out, or "
                "choose --protocol disjoint or sliding."
            )
        if self.context is not None and self.name == "training":
            raise UsageError(
                f"--context {self.context}: --protocol training uses the run's own blocks. Set "
                "--data.block_size instead."
            )

    def for_model(self, positions: int) -> "Protocol":
        """Fill in the defaults for a model of so many positions.

        Raises:
            UsageError: If the model has fewer positions than the context.
        """
        context = positions if self.context is None else self.context
        if context > positions:
            raise UsageError(
                f"--context {context}: the model has {positions} positions. "
                f"--context {positions} would work."
            )
        stride = context if self.name == "disjoint" else None
        if self.name == "sliding":
            stride = self.stride
            stride = max(context // 2, 1) if stride is None else stride
            if stride > context:
                raise UsageError(
                    f"--stride {stride}: must be <= the context of {context} tokens, or text would "
                    f"be skipped. --stride {context // 2} would work."
                )
        return Protocol(self.name, context, stride, self.joiner)


@dataclass(frozen=True)
class EvaluatedText:
    """The text, with the arguments of WikiTextDataModule; null is the run's own value, if known.

    Attributes:
        source: File, folder, Hub id such as Salesforce/wikitext, or builtin. Null is the text that
            the model was trained on, if it is a run.
        subset: Folder below the source, or configuration on the Hub (wikitext-2-raw-v1).
        revision: Branch, tag or commit on the Hub.
        text_column: Column that holds the text, in parquet, jsonl and csv files.
        documents: A document of a text file: the whole file, or each line.
        validation_source: File, folder or pattern of the validation split, looked up as a path
            and then inside the source; none holds out a part of the training text, whatever the
            source's files are called.
        test_source: The same of the test split.
        cleaning: Of each row: none; detokenize undoes WikiText's spaces and marks; tutorial drops
            all punctuation.
        blocks: For --protocol training: pack fills every block, pad puts one row in each.
        block_size: For --protocol training: tokens in a block.
        attend: For --protocol training: block, or document, which keeps attention within documents.
        cache_dir: Folder of the token stores, by default ~/.cache/gpt2_lightning.
    """

    source: str | None = None
    subset: str | None = None
    revision: str | None = None
    text_column: str | None = None
    documents: Literal["file", "line"] | None = None
    validation_source: str | None = None
    test_source: str | None = None
    cleaning: CleaningName | None = None
    blocks: Literal["pack", "pad"] | None = None
    block_size: int | None = None
    attend: Literal["block", "document"] | None = None
    cache_dir: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the values that are not null."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def as_trained(self, model: str) -> "EvaluatedText":
        """Fill in null values from the model's run; for another text, only `FORMAT_SETTINGS`.

        Args:
            model: A run folder, its ``hf/``, or a ``.ckpt``; anything else adds nothing.
        """
        wanted = FORMAT_SETTINGS if self.source else (*FORMAT_SETTINGS, *SOURCE_SETTINGS)
        trained = _data_settings(model)
        of_run = {name: trained[name] for name in wanted if name in trained}
        return EvaluatedText(**of_run | self.given())


def _data_settings(model: str) -> dict[str, Any]:
    path = Path(model).expanduser()
    if path.suffix == ".ckpt" and path.exists():  # a folder, where its state is sharded
        from gpt2_lightning.checkpoint import read_notes  # needs torch

        return dict(read_notes(path).get("datamodule_hyper_parameters") or {})
    if not path.is_dir():
        return {}
    from gpt2_lightning.run_folder import Run, read_settings  # needs torch

    config = Run(path.parent if path.name == "hf" else path).config
    if not config.is_file():
        return {}
    try:
        data: dict[str, Any] = read_settings(config).get("data") or {}
        for name, choices in CHOICES.items():
            if data.get(name) not in (None, *choices):
                raise ValueError(f"data.{name} is none of {', '.join(choices)}")
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {model}: {config} cannot be read ({error}).") from error
    return data
