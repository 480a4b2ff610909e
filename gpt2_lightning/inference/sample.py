"""Sample: a text that a model wrote, and how it is kept."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import disk_message, write_text

SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Sample:
    """What a model wrote.

    Attributes:
        prompt: What it continued.
        seed: Its seed; None where nothing was drawn at random.
        text: What it wrote, up to a stop string.
        ended: Whether it ended by itself, by the end-of-text or at a stop string.
        forgotten: Tokens at the beginning of prompt and text that the model no longer saw at the
            end.
    """

    prompt: str
    seed: int | None
    text: str
    ended: bool
    forgotten: int = 0

    def __str__(self) -> str:
        """Return the sample as it is shown: a line with the seed, the prompt with its text."""
        how = "without sampling" if self.seed is None else f"seed {self.seed}"
        return f"--- {how}\n{self.prompt}{self.text}\n"


def sample_file(name: str, *, flag: str) -> Path:
    """Return the file of a name, when samples can be written there.

    Args:
        name: A file that ends with .txt or .jsonl.
        flag: What named it, for messages.

    Raises:
        UsageError: If its form is unknown or its folder is missing.
    """
    file = Path(name).expanduser()
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{flag} {name}: its name has to end with .txt or .jsonl.")
    if file.is_dir():
        raise UsageError(f"{flag} {name}: it is a folder. Give a file in it.")
    parent = file.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{flag} {name}: the folder {parent} is missing or cannot be written.")
    return file


def write_samples(samples: Sequence[Sample], file: Path) -> None:
    """Write samples whole or not at all: .jsonl a row each, .txt as they are shown.

    Raises:
        UsageError: If the disk refuses.
    """
    if file.suffix == ".jsonl":
        names = ("prompt", "seed", "text", "ended")
        rows = [{name: getattr(sample, name) for name in names} for sample in samples]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = "\n".join(map(str, samples))
    try:
        write_text(file, text)
    except OSError as error:
        raise UsageError(str(disk_message(error, file))) from error
