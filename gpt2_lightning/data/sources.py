"""Where rows come from: the built-in corpus, local files and folders, or the Hub."""

import hashlib
import logging
import re
from pathlib import Path

from gpt2_lightning.data.arrow import open_hub
from gpt2_lightning.data.builtin import BUILTIN_VERSION, builtin_rows
from gpt2_lightning.data.files import flag_of, open_held_out, open_path
from gpt2_lightning.data.readers import OTHER_DOCUMENTS, is_data
from gpt2_lightning.data.rows import SPLIT_NAMES, DocumentsName, Row, Rows, SplitName, say_splits
from gpt2_lightning.errors import UsageError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

log = logging.getLogger(__name__)


def open_source(
    source: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    text_column: str = "text",
    documents: DocumentsName = "file",
    validation_source: str | None = None,
    test_source: str | None = None,
) -> dict[SplitName, Rows]:
    """Find the splits of a source.

    Args:
        source: ``builtin``, the path of a file or folder, or a Hub id such as
            ``Salesforce/wikitext``.
        subset: Folder below ``source``, or configuration on the Hub.
        revision: Branch, tag or commit on the Hub.
        text_column: The column that holds the text, in parquet, jsonl and csv files.
        documents: Whether a text file, or each of its lines, is a document.
        validation_source: File, folder or pattern of the validation split; ``none`` where it is
            to be held out of the training text, whatever the source's files are called.
        test_source: The same of the test split.

    Returns:
        The rows of every split that the source has.

    Raises:
        UsageError: If there is no such source, or nothing in it that can be read.
    """
    held_out: dict[SplitName, str] = {}
    if validation_source is not None:
        held_out["validation"] = validation_source
    if test_source is not None:
        held_out["test"] = test_source
    found = _open(source, subset, revision, text_column, documents, held_out)
    for split, name in held_out.items():
        if name != "none":
            found[split] = open_held_out(flag_of(split), name, text_column, documents)
    return found


def _open(
    source: str,
    subset: str | None,
    revision: str | None,
    text_column: str,
    documents: DocumentsName,
    held_out: dict[SplitName, str],
) -> dict[SplitName, Rows]:
    if source == "builtin":
        try:
            rows = builtin_rows()
        except ValueError as error:
            raise UsageError(f"--data.source builtin: {error}") from error
        for flag, value in (("subset", subset), ("revision", revision)):
            _say_unused(flag, value, "the built-in text has none")
        _say_unused("documents", documents, "the built-in text is no file of lines")
        named = {SPLIT_NAMES[name]: text for name, text in rows.items()}
        kept = {name: text for name, text in named.items() if name not in held_out}
        say_splits(
            "builtin, the language reference of this Python",
            {name: f"{len(text):,} rows" for name, text in kept.items()},
            {
                f"--data.{name}_source is given": [f"its own {name} split"]
                for name in named
                if name not in kept
            },
        )
        return {name: _rows_in_memory(text) for name, text in kept.items()}
    path = Path(source).expanduser()
    if path.exists():
        _say_unused("revision", revision, f"{path} is a path here, not a source on the Hub")
        return open_path(path, subset, text_column, documents=documents, held_out=held_out)
    is_file = is_data(source) or path.suffix.lower() in OTHER_DOCUMENTS
    if HUB_ID.fullmatch(source) and source[0] not in ".-" and not is_file:
        _say_unused("documents", documents, "each row of a data set is a document")
        return open_hub(source, subset, revision, text_column, held_out)
    raise UsageError(
        f"--data.source {source}: there is no such file or folder. Give a path that exists, "
        "a Hub id such as Salesforce/wikitext, or builtin."
    )


def _say_unused(flag: str, value: str | None, reason: str) -> None:
    if value not in (None, "file"):  # where each file is a document, nothing was asked for
        log.warning("--data.%s %s is not used: %s.", flag, value, reason)


def _rows_in_memory(texts: list[str]) -> Rows:
    identity = f"builtin {BUILTIN_VERSION} " + hashlib.sha256("".join(texts).encode()).hexdigest()
    return Rows(lambda: (Row(text, index == 0) for index, text in enumerate(texts)), (), identity)
