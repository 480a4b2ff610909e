"""Data sets that `datasets` opens: a folder written by its ``save_to_disk``, or one of the Hub."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

from gpt2_lightning.data.articles import SPLIT_NAMES, Row, Rows, SourceFile, SplitName, log_splits
from gpt2_lightning.data.readers import ROWS_PER_READ, rows_of_column
from gpt2_lightning.errors import UsageError, reason
from gpt2_lightning.untrusted import is_inside, read_json


def open_saved(
    path: Path, text_column: str, held_out: Collection[SplitName] = ()
) -> dict[SplitName, Rows]:
    """Open a folder written by ``save_to_disk`` of `datasets`.

    Args:
        path: The folder.
        text_column: The column that holds the text.
        held_out: Splits that flags give; the folder's own text of these is left out.

    Raises:
        UsageError: If it cannot be read, or names a file outside of it.
    """
    from datasets import Dataset, DatasetDict, load_from_disk

    for state in (*path.glob("state.json"), *path.glob("*/state.json")):
        try:
            names = [str(entry["filename"]) for entry in read_json(state)["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"--data.source {path}: {state} cannot be read ({error}).") from error
        for name in names:  # datasets itself opens whatever they lead to
            if not is_inside(state.parent, name):
                raise UsageError(
                    f"--data.source {path}: {state} names {name!r}, which is no file of the "
                    "folder. Nothing was read from there."
                )

    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # pyarrow and datasets raise anything for damaged files
        raise UsageError(
            f"--data.source {path}: it cannot be read as a saved data set ({reason(error)}). Save "
            "or fetch it again."
        ) from error
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": cast(Dataset, loaded)}
    return _rows_of_datasets(splits, text_column, path, held_out)


def open_hub(
    source: str,
    subset: str | None,
    revision: str | None,
    text_column: str,
    held_out: Collection[SplitName] = (),
) -> dict[SplitName, Rows]:
    """Download a data set from the Hub, or from the mirror that HF_ENDPOINT names.

    Args:
        source: Hub id such as ``Salesforce/wikitext``.
        subset: Configuration.
        revision: Branch, tag or commit.
        text_column: The column that holds the text.
        held_out: Splits that flags give; the data set's own text of these is left out.

    Raises:
        UsageError: If it cannot be downloaded.
    """
    from datasets import DatasetDict, load_dataset

    try:
        loaded = load_dataset(source, subset, revision=revision)
    except Exception as error:
        text = str(error)
        if "Config name is missing" in text or "BuilderConfig" in text:
            advice = "Choose one with --data.subset."
        else:
            advice = "Check the name, or give the path of a local file or folder."
        raise UsageError(
            f"--data.source {source}: it could not be downloaded: {reason(error)}. {advice}"
        ) from error
    assert isinstance(loaded, DatasetDict)  # all splits, as none was named
    return _rows_of_datasets(loaded, text_column, Path(source), held_out)


def _rows_of_datasets(
    datasets: dict[str, Any], text_column: str, path: Path, held_out: Collection[SplitName]
) -> dict[SplitName, Rows]:
    found: dict[SplitName, Rows] = {}
    described: dict[SplitName, str] = {}
    left_out: dict[str, list[str]] = {}
    for name, dataset in datasets.items():
        split = SPLIT_NAMES.get(name.lower())
        reason = (
            "not called train, validation or test"
            if split is None
            else f"--data.{split}_source is given"
            if split in held_out
            else f"a second {split} split"
            if split in found
            else None
        )
        if split is None or reason is not None:
            left_out.setdefault(str(reason), []).append(name)
            continue
        if text_column not in dataset.column_names:
            raise UsageError(
                f"--data.text_column {text_column}: {path} has no such column. "
                f"It has: {', '.join(dataset.column_names)}."
            )

        def read(dataset: Any = dataset) -> Iterator[Row]:
            for batch in dataset.iter(batch_size=ROWS_PER_READ):
                yield from rows_of_column(batch[text_column], text_column, path)

        files = tuple(SourceFile(Path(entry["filename"])) for entry in dataset.cache_files)
        found[split] = Rows(read, files, f"arrow {text_column} 2")
        called = "" if name == split else f" ({name})"
        described[split] = f"{dataset.num_rows:,} rows{called}"
    if not found and not held_out:
        raise UsageError(
            f"--data.source {path}: its splits are {', '.join(datasets)}; none is called train, "
            "validation or test. Rename one."
        )
    log_splits(path, described, left_out, "split")
    return found
