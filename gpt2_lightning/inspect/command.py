"""`inspect`: what the model will see of a source, before training."""

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from difflib import SequenceMatcher
from json import dumps
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gpt2_lightning.data.articles import SplitName
from gpt2_lightning.data.cleaning import CLEANERS, CleaningName
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.card import percent
from gpt2_lightning.fit.settings import FitSettings
from gpt2_lightning.inspect.findings import (
    Findings,
    SplitFigures,
    advice,
    as_document,
    inspect_source,
)
from gpt2_lightning.inspect.rows import Duplicate
from gpt2_lightning.inspect.tokens import FirstBlock

WORD = re.compile(r"\w+|\s|[^\w\s]")

GONE, NEW = "white on red", "black on green"

BAR = 24  # cells of the histogram's longest bar
SHOWN_AT_START, SHOWN_AT_END = 6, 3  # positions of the first block
LONGEST_TEXT = 240  # characters shown of the first block

Found = tuple[Findings, WikiTextDataModule]


def inspect(
    settings: FitSettings,
    *,
    split: Literal["all", "train", "validation", "test"] = "all",
    compare: bool = False,
    ngram: int = 13,
    rows: int = 3,
    json: bool = False,
) -> None:
    """Show what the model will see: counts, lengths, losses by cleaning, and a first block.

    Args:
        settings: The flags of `fit`.
        split: Inspect only this split, or all splits of the source.
        compare: Compare the cleaners none, detokenize and tutorial side by side.
        ngram: Tokens of the n-grams that are searched in the training split.
        rows: Rows to show before and after cleaning.
        json: Print only the figures, as JSON, on standard output.

    Raises:
        UsageError: If the source cannot be read, or a flag is invalid.
    """
    if ngram < 1:
        raise UsageError(f"--ngram {ngram}: must be >= 1. Try 13.")
    if rows < 0:
        raise UsageError(f"--rows {rows}: must be >= 0.")
    wanted: SplitName | None = None if split == "all" else split
    given: dict[str, Any] = settings.values.data.as_dict()
    cleaners: list[CleaningName] = [given["cleaning"]]
    if compare:
        cleaners += [name for name in CLEANERS if name not in cleaners]
    cleanings = [WikiTextDataModule(**given | {"cleaning": name}) for name in cleaners]
    working = Console(stderr=True).status
    with redirect_stdout(sys.stderr):  # standard output is for the result only
        findings = inspect_source(
            cleanings, split=wanted, ngram=ngram, samples=rows, working=working
        )
    chosen = cleaners[0]
    by_name = dict(zip(cleaners, zip(findings, cleanings, strict=True), strict=True))
    found = {name: by_name[name] for name in CLEANERS if name in by_name}
    if json:
        document = as_document(*found[chosen])
        if compare:
            document["compare"] = {name: as_document(*one) for name, one in found.items()}
        print(dumps(document, indent=2, allow_nan=False))
        return
    show(Console(highlight=False, markup=False, emoji=False), found, chosen)


def show(console: Console, found: Mapping[CleaningName, Found], chosen: CleaningName) -> None:
    """Print the findings, in 80 columns.

    Args:
        console: The console.
        found: For each cleaner, the findings and their datamodule.
        chosen: The cleaner that `fit` would use.
    """
    findings, data = found[chosen]
    first = next(iter(findings.splits))
    figures = findings.splits[first]
    _print_source(console, findings, data)
    if len(found) == 1:
        console.print(figures_table({name: (it, data) for name, it in findings.splits.items()}))
        _print_samples(console, figures, chosen)
    else:
        _print_comparison(console, found, first)
    console.print(lengths_table(findings, data))
    console.print()
    for name, it in findings.splits.items():
        _print_repetition(console, name, it)
    if data.blocks == "pad":
        counts = ", ".join(f"{it.fill.blocks:,} of {name}" for name, it in findings.splits.items())
        console.print(f"Every row is {data.block_size:,} tokens: {counts}.\n")
    _print_block(console, first, figures.first_block, data)
    for note in advice(findings, data):
        console.print(Text(f"Note: {note}", style="yellow"))


def _print_source(console: Console, findings: Findings, data: WikiTextDataModule) -> None:
    lines = {
        "source": f"{data.source}{f' {data.subset}' if data.subset else ''}",
        "tokenizer": f"{data.tokenizer_name or 'trained on the training split'}, "
        f"{len(data.tokenizer):,} ids",
    }
    if held_out := findings.held_out_from_train:
        lines["not in it"] = f"{' and '.join(held_out)}: held out of the training text"
    if findings.missing:
        lines["missing"] = f"{' and '.join(findings.missing)}: no such split in this source"
    for label, value in lines.items():
        console.print(f"{label:11}{value}", soft_wrap=True)
    console.print()


def _print_comparison(
    console: Console, found: Mapping[CleaningName, Found], first: SplitName
) -> None:
    """Print the figures under several cleaners side by side, split by split, and some rows."""
    for split in next(iter(found.values()))[0].splits:
        columns = {str(name): (one.splits[split], data) for name, (one, data) in found.items()}
        console.print(figures_table(columns, title=f"The {split} split, by --data.cleaning"))
    samples = [one.splits[first].cleaning.samples for one, _ in found.values()]
    if not samples[0]:
        return
    table = Table(box=box.SIMPLE_HEAD, title="Rows after cleaning", title_justify="left")
    for name in found:
        table.add_column(name, ratio=1, overflow="fold")
    for row in zip(*samples, strict=True):
        table.add_row(*(Text(sample.after.rstrip("\n")) for sample in row), end_section=True)
    console.print(table)


def _print_samples(console: Console, figures: SplitFigures, cleaner: str) -> None:
    samples = figures.cleaning.samples
    if not samples or cleaner == "none":
        return
    console.print(Text(f"Rows before and after --data.cleaning {cleaner}", style="italic"))
    grid = Table.grid(padding=(0, 2))
    for sample in samples:
        before, after = differences(sample.before.rstrip("\n"), sample.after.rstrip("\n"))
        grid.add_row("before", before)
        grid.add_row("after", after)
        grid.add_row()
    console.print(grid)


def _print_repetition(console: Console, name: SplitName, figures: SplitFigures) -> None:
    found: list[tuple[str, list[Duplicate]]] = [
        (f"the {name} split", figures.duplicates.examples),
        ("the training split", figures.duplicates.examples_in_training),
    ]
    for where, examples in found:
        for one in examples:
            console.print(
                Text(
                    f"Article {one.article:,} of the {name} split repeats article {one.repeats:,} "
                    f"of {where}: {one.beginning}"
                )
            )
    overlap = figures.overlap
    if overlap is not None and overlap.found:
        text = " ".join(overlap.passage.split())
        console.print(
            Text(
                f"Longest passage of the {name} split whose {overlap.n}-grams are all in the "
                f"training split, {overlap.longest:,} tokens: {text[:LONGEST_TEXT]}\n"
            )
        )


def _print_block(
    console: Console, name: SplitName, block: FirstBlock, data: WikiTextDataModule
) -> None:
    size = len(block.inputs)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"The first block of the {name} split: inputs and targets",
        title_justify="left",
        caption="Every target is the next position's input."
        if block.in_step
        else "A target is NOT the next position's input: the blocks are misaligned.",
        caption_justify="left",
    )
    table.add_column("position", justify="right")
    for column in ("input", "id", "target", "id"):
        table.add_column(column, justify="right" if column == "id" else "left")
    last = sum(target is not None for target in block.wanted)
    shown = {*range(SHOWN_AT_START), *range(last - SHOWN_AT_END, last + 2), size - 1}
    before = -1
    for place in sorted(place for place in shown if 0 <= place < size):
        if place > before + 1:
            table.add_row("...")
        wanted = block.wanted[place]
        table.add_row(
            str(place),
            Text(_quoted(block.inputs[place]) if block.attention_mask[place] else "(padding)"),
            str(block.input_ids[place]),
            Text("(masked)" if wanted is None else _quoted(wanted)),
            "" if wanted is None else str(block.targets[place]),
        )
        before = place
    console.print(table)
    text = block.text[:LONGEST_TEXT] + (" ..." if len(block.text) > LONGEST_TEXT else "")
    console.print(Text(f"It reads: {_quoted(text)}\n"))


def _quoted(text: str) -> str:
    """Quote a text, with escapes for white space."""
    return '"' + text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'


def figures_table(
    columns: Mapping[str, tuple[SplitFigures, WikiTextDataModule]], title: str | None = None
) -> Table:
    """Put the figures of several splits, or of one under several cleaners, side by side.

    Args:
        columns: By name, the figures and their datamodule.
        title: Title of the table.
    """
    _, data = next(iter(columns.values()))
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    cleaners = {data.cleaner.name for _, data in columns.values()}
    cleaning = f"cleaning: {cleaners.pop()}" if len(cleaners) == 1 else "cleaning"
    sizes = {figures.overlap.n for figures, _ in columns.values() if figures.overlap}
    ngrams = f"{sizes.pop()}-grams" if sizes else "n-grams"
    for line in _lines(data, cleaning, ngrams):
        if line.figure is None:
            table.add_row(Text(line.label, style="bold"))
        else:
            cells = (line.figure(figures) for figures, _ in columns.values())
            table.add_row(f"  {line.label}", *cells)
    return table


class _Line(NamedTuple):
    """A row of the table; a heading if it has no figure."""

    label: str
    figure: Callable[[SplitFigures], str] | None = None


def _lines(data: WikiTextDataModule, cleaning: str, ngrams: str) -> list[_Line]:
    unit = "articles" if data.blocks == "pack" else "rows"
    return [
        _Line("original text"),
        _Line("articles", lambda it: _count(it.original.articles)),
        _Line("rows", lambda it: _count(it.original.rows)),
        _Line("  of these blank", lambda it: _count(it.original.blank_rows)),
        _Line("words (str.split)", lambda it: _words(it, it.original.words)),
        _Line("words (lm-eval's rule)", lambda it: _words(it, it.original.harness_words)),
        _Line("characters", lambda it: _count(it.original.characters)),
        _Line("bytes (UTF-8)", lambda it: _count(it.original.bytes)),
        _Line(cleaning),
        _Line("characters lost", lambda it: percent(it.cleaning.share_of_characters_lost)),
        _Line("punctuation lost", lambda it: percent(it.cleaning.share_of_punctuation_lost)),
        _Line("numbers lost", lambda it: percent(it.cleaning.share_of_numbers_lost)),
        _Line("rows emptied", lambda it: _count(it.cleaning.rows_emptied)),
        _Line("tokens"),
        _Line("tokens", lambda it: _count(it.vocabulary.tokens)),
        _Line("tokens per word", lambda it: _ratio(it.vocabulary.tokens_per_word)),
        _Line("tokens per character", lambda it: _ratio(it.vocabulary.tokens_per_character)),
        _Line("pieces of characters", lambda it: percent(it.vocabulary.pieces_of_characters)),
        _Line("vocabulary used", lambda it: percent(it.vocabulary.used / it.vocabulary.size)),
        _Line(f"blocks: {data.blocks}, {data.block_size:,} tokens"),
        _Line(f"{unit} with text", lambda it: _count(it.lengths.units)),
        _Line("blocks per epoch", lambda it: _count(it.fill.blocks)),
        _Line("tokens to predict", lambda it: _count(it.fill.targets)),
        _Line("positions used", lambda it: percent(it.fill.share_used)),
        _Line("positions padded", lambda it: percent(it.fill.share_padded)),
        _Line("tokens cut off", lambda it: percent(it.fill.share_cut_off)),
        _Line("targets masked", lambda it: percent(it.fill.share_masked)),
        _Line("repetition"),
        _Line("repeated articles", lambda it: _count(it.duplicates.articles)),
        _Line("articles also in train", lambda it: _count(it.duplicates.in_training)),
        _Line(
            f"{ngrams} also in train",
            lambda it: percent(it.overlap.share if it.overlap else None),
        ),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _words(figures: SplitFigures, count: int) -> str:
    return _count(count if figures.cleaning.has_words else None)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def lengths_table(findings: Findings, data: WikiTextDataModule) -> Table:
    """Return the histogram of the first split's lengths, with the other splits' shares."""
    splits = findings.splits
    first = next(iter(splits.values())).lengths
    unit = "articles" if data.blocks == "pack" else "rows"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Lengths of {unit}, in tokens",
        title_justify="left",
        caption=f"{next(iter(splits))}: median {first.median:,}, mean {first.mean:,.1f}, "
        f"95 % up to {first.percentile_95:,}, longest {first.longest:,}",
        caption_justify="left",
    )
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column(f"share of {next(iter(splits))}", width=BAR)
    for name in splits:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    shares = {
        name: {one.low: one.units / figures.lengths.units for one in figures.lengths.bins}
        for name, figures in splits.items()
    }
    highs = {one.low: one.high for it in splits.values() for one in it.lengths.bins}
    most = max(one.units for one in first.bins) / first.units
    for low in sorted(highs):
        cut = data.blocks == "pad" and highs[low] > data.block_size
        share = shares[next(iter(splits))].get(low, 0.0)
        colour = "red" if cut else "green"
        table.add_row(
            f"{low:,}" if highs[low] == low else f"{low:,}-{highs[low]:,}",
            ProgressBar(
                most, share, BAR, style="grey19", complete_style=colour, finished_style=colour
            ),
            *(percent(shares[name].get(low, 0.0)) for name in splits),
            "" if not cut else "cut" if low > data.block_size else "in part",
        )
    return table


def differences(before: str, after: str) -> tuple[Text, Text]:
    """Colour the words that are only in the first text, and those only in the second.

    Args:
        before: Some hundred characters; the time grows with their square.
        after: Likewise.
    """
    old, new = WORD.findall(before), WORD.findall(after)
    shown_before, shown_after = Text(), Text()
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        shown_before.append("".join(old[a:b]), None if kind == "equal" else GONE)
        shown_after.append("".join(new[c:d]), None if kind == "equal" else NEW)
    return shown_before, shown_after


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    settings = FitSettings("inspect", words, inspect)
    inspect(settings, **settings.own)
