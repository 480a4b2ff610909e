"""EvaluatedText: which text is evaluated, and what of it is as in training."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gpt2_lightning.data.cleaning import CleaningName
from gpt2_lightning.errors import UsageError

HOW_IT_IS_CUT = ("cleaning", "documents", "blocks", "block_size")
CHOICES = {
    "cleaning": get_args(CleaningName),
    "documents": ("file", "line"),
    "blocks": ("pack", "pad"),
}
WHERE_IT_LIES = ("source", "subset", "revision", "text_column", "validation_source", "test_source")


@dataclass(frozen=True)
class EvaluatedText:
    """The text, by the names of WikiTextDataModule's arguments. Null: as in training, if known.

    Attributes:
        source: File, folder, Hub id such as Salesforce/wikitext, or builtin. Null takes the text
            that the model was trained on, if it is a run.
        subset: Folder below the source, or configuration on the Hub (wikitext-2-raw-v1).
        revision: Branch, tag or commit on the Hub.
        text_column: Column that holds the text, in parquet, jsonl and csv files.
        documents: What of a text file is a document: the whole file, or each line.
        validation_source: File, folder or pattern of the validation split; none holds it out of
            the training text, whatever the source's files are called.
        test_source: The same of the test split.
        cleaning: What is done to each row: none; detokenize undoes WikiText's spaces and marks;
            tutorial drops all punctuation.
        blocks: For --protocol training: pack fills every block, pad puts one row in each.
        block_size: For --protocol training: tokens in a block.
        cache_dir: Where tokens are kept; ~/.cache/gpt2_lightning unless said.
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
    cache_dir: str | None = None

    def given(self) -> dict[str, Any]:
        """Return what was said, and nothing of what was left open."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def as_trained(self, model: str) -> "EvaluatedText":
        """Fill in what was left open from the run that the model is of.

        Another text takes over how the run's was cut, and nothing of where it lay.

        Args:
            model: A run folder, its ``hf/``, or a ``.ckpt``; anything else adds nothing.
        """
        wanted = HOW_IT_IS_CUT if self.source else (*HOW_IT_IS_CUT, *WHERE_IT_LIES)
        trained = _data_settings(model)
        of_run = {name: trained[name] for name in wanted if name in trained}
        return EvaluatedText(**of_run | self.given())


def _data_settings(model: str) -> dict[str, Any]:
    path = Path(model).expanduser()
    if path.suffix == ".ckpt" and path.exists():  # a folder, where its state is sharded
        from gpt2_lightning.inference.checkpoint import read_checkpoint  # needs torch

        return dict(read_checkpoint(path)["datamodule_hyper_parameters"])
    run = path.parent if path.name == "hf" else path
    config = run / "config.yaml"
    if not path.is_dir() or not config.is_file():
        return {}
    from gpt2_lightning.inference.checkpoint import read_settings  # needs torch

    try:
        data: dict[str, Any] = read_settings(config).get("data") or {}
        for name, choices in CHOICES.items():
            if data.get(name) not in (None, *choices):
                raise ValueError(f"data.{name} is none of {', '.join(choices)}")
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {model}: {config} cannot be read ({error}).") from error
    return data
