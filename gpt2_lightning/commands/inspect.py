"""``inspect``: what the model will really see of a source."""

import sys
from contextlib import redirect_stdout
from json import dumps
from typing import Any, Literal

from rich.console import Console

from gpt2_lightning.commands.inspect_screen import show
from gpt2_lightning.data.cleaning import CLEANERS, CleaningName
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit_settings import FitSettings
from gpt2_lightning.inspection.document import as_document
from gpt2_lightning.inspection.findings import Findings, find


def inspect(
    settings: FitSettings,
    *,
    split: Literal["all", "train", "validation", "test"] = "all",
    compare: bool = False,
    ngram: int = 13,
    rows: int = 3,
    json: bool = False,
) -> None:
    """Show what the model will really see: counts, lengths, what is lost, and a first block.

    Args:
        settings: What `fit` would be told.
        split: Look at this split alone, or at all that the source has.
        compare: Put the cleaners none, detokenize and tutorial side by side.
        ngram: Tokens of the n-grams that are looked for in the training split.
        rows: Rows to show before and after cleaning.
        json: Print all figures as JSON on standard output, and nothing else there.

    Raises:
        UsageError: If the source cannot be read, or a flag says what cannot be.
    """
    if ngram < 1:
        raise UsageError(f"--ngram {ngram}: it has to be 1 or more. Try 13.")
    if rows < 0:
        raise UsageError(f"--rows {rows}: it has to be 0 or more.")
    wanted: SplitName | None = None if split == "all" else split
    given: dict[str, Any] = settings.values.data.as_dict()
    cleaners: list[CleaningName] = [given["cleaning"]]
    if compare:
        cleaners += [name for name in CLEANERS if name not in cleaners]
    found: dict[CleaningName, tuple[Findings, WikiTextDataModule]] = {}
    messages = Console(stderr=True)
    # what others print goes where messages go
    with redirect_stdout(sys.stderr):
        for name in cleaners:
            data = WikiTextDataModule(**given | {"cleaning": name})
            for _, before in found.values():
                data.share_source(before)
            findings = find(data, split=wanted, ngram=ngram, samples=rows, working=messages.status)
            found[name] = findings, data
    chosen = cleaners[0]
    found = {name: found[name] for name in CLEANERS if name in found}
    if json:
        document = as_document(*found[chosen])
        if compare:
            document["compare"] = {name: as_document(*one) for name, one in found.items()}
        print(dumps(document, indent=2, allow_nan=False))
        return
    show(Console(highlight=False, markup=False, emoji=False), found, chosen)


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    settings = FitSettings("inspect", words, inspect)
    inspect(settings, **settings.own)
