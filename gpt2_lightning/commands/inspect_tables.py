"""The figures of `inspect` on the screen: tables, a histogram, rows before and after, a block."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gpt2_lightning.commands.differences import differences
from gpt2_lightning.data.cleaning import CleaningName
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName
from gpt2_lightning.inspection.advice import advice
from gpt2_lightning.inspection.duplicates import Duplicate
from gpt2_lightning.inspection.findings import Findings, SplitFigures
from gpt2_lightning.inspection.first_block import FirstBlock

BAR = 24  # cells of the histogram's longest bar
SHOWN_AT_START, SHOWN_AT_END = 6, 3  # positions of the first block
LONGEST_TEXT = 240  # characters shown of the first block

Found = tuple[Findings, WikiTextDataModule]


class _Line(NamedTuple):
    """A row of the table; one without a figure is a heading."""

    label: str
    figure: Callable[[SplitFigures], str] | None = None


def print_findings(
    console: Console, findings: Findings, data: WikiTextDataModule, *, alone: bool = True
) -> None:
    """Print what was found.

    Args:
        console: Where.
        findings: The figures.
        data: Of which.
        alone: Whether no other cleaner stands beside this one, in tables that follow.
    """
    subset = f" {data.subset}" if data.subset else ""
    lines = {
        "source": f"{data.source}{subset}",
        "tokenizer": f"{data.tokenizer_name or 'trained on the training split'}, "
        f"{len(data.tokenizer):,} ids",
    }
    if findings.taken:
        lines["not in it"] = f"{' and '.join(findings.taken)}: taken out of the training text"
    if findings.missing:
        lines["missing"] = f"{' and '.join(findings.missing)}: no such split in this source"
    for label, value in lines.items():
        console.print(f"{label:11}{value}", soft_wrap=True)
    if alone:
        console.print(_figures({name: (f, data) for name, f in findings.splits.items()}))
    console.print(_lengths(findings, data))
    first = next(iter(findings.splits))
    if alone:
        _print_samples(console, findings.splits[first], data.cleaner.name)
    for name, figures in findings.splits.items():
        _print_repetition(console, name, figures)
    _print_block(console, first, findings.splits[first].first_block, data)
    for warning in advice(findings, data):
        console.print(Text(f"Note: {warning}", style="yellow"))


def print_comparison(console: Console, found: Mapping[CleaningName, Found]) -> None:
    """Print the figures under several cleaners side by side, split by split, and some rows."""
    some = next(iter(found.values()))[0]
    for split in some.splits:
        columns = {str(name): (one.splits[split], data) for name, (one, data) in found.items()}
        console.print(_figures(columns, title=f"The {split} split, by --data.cleaning"))
    first = next(iter(some.splits))
    table = Table(box=box.SIMPLE_HEAD, title="Rows after cleaning", title_justify="left")
    for name in found:
        table.add_column(name, ratio=1, overflow="fold")
    samples = [one.splits[first].cleaning.samples for one, _ in found.values()]
    for row in zip(*samples, strict=True):
        table.add_row(*(Text(sample.after.rstrip("\n")) for sample in row), end_section=True)
    console.print(table)


def _figures(
    columns: Mapping[str, tuple[SplitFigures, WikiTextDataModule]], title: str | None = None
) -> Table:
    figures, data = next(iter(columns.values()))
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1))
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    cleaners = {data.cleaner.name for _, data in columns.values()}
    cleaning = f"cleaning: {cleaners.pop()}" if len(cleaners) == 1 else "cleaning"
    for line in _lines(figures, data, cleaning):
        if line.figure is None:
            table.add_row(Text(line.label, style="bold"))
        else:
            cells = (line.figure(figures) for figures, _ in columns.values())
            table.add_row(f"  {line.label}", *cells)
    return table


def _lines(figures: SplitFigures, data: WikiTextDataModule, cleaning: str) -> list[_Line]:
    unit = "articles" if data.blocks == "pack" else "rows"
    overlap = figures.overlap
    n = overlap.n if overlap else 0
    return [
        _Line("original text"),
        _Line("articles", lambda it: _count(it.original.articles)),
        _Line("rows", lambda it: _count(it.original.rows)),
        _Line("  of these blank", lambda it: _count(it.original.blank_rows)),
        _Line("words (str.split)", lambda it: _count(it.original.words)),
        _Line("words (lm-eval's rule)", lambda it: _count(it.original.harness_words)),
        _Line("characters", lambda it: _count(it.original.characters)),
        _Line("bytes (UTF-8)", lambda it: _count(it.original.bytes)),
        _Line(cleaning),
        _Line("characters lost", lambda it: _share(it.cleaning.share_of_characters_lost)),
        _Line("punctuation lost", lambda it: _share(it.cleaning.share_of_punctuation_lost)),
        _Line("numbers lost", lambda it: _share(it.cleaning.share_of_numbers_lost)),
        _Line("rows emptied", lambda it: _count(it.cleaning.rows_emptied)),
        _Line("tokens"),
        _Line("tokens", lambda it: _count(it.vocabulary.tokens)),
        _Line("tokens per word", lambda it: _ratio(it.vocabulary.tokens_per_word)),
        _Line("tokens per character", lambda it: _ratio(it.vocabulary.tokens_per_character)),
        _Line("pieces of characters", lambda it: _share(it.vocabulary.pieces_of_characters)),
        _Line("vocabulary used", lambda it: _share(it.vocabulary.used / it.vocabulary.size)),
        _Line(f"blocks: {data.blocks}, {data.block_size:,} tokens"),
        _Line(f"{unit} with text", lambda it: _count(it.lengths.units)),
        _Line("blocks per epoch", lambda it: _count(it.fill.blocks)),
        _Line("positions used", lambda it: _share(it.fill.share_used)),
        _Line("positions padded", lambda it: _share(it.fill.share_padded)),
        _Line("tokens cut off", lambda it: _share(it.fill.share_cut_off)),
        _Line("targets masked", lambda it: _share(it.fill.share_masked)),
        _Line("repetition"),
        _Line("repeated articles", lambda it: _count(it.duplicates.articles)),
        _Line("articles also in train", lambda it: _count(it.duplicates.in_training)),
        _Line(
            f"{n}-grams also in train" if n else "n-grams also in train",
            lambda it: _share(it.overlap.share if it.overlap else None),
        ),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _lengths(findings: Findings, data: WikiTextDataModule) -> Table:
    """Draw the histogram of the first split's lengths, the others' shares beside it."""
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
        cut = data.blocks == "pad" and low >= data.block_size
        share = shares[next(iter(splits))].get(low, 0.0)
        colour = "red" if cut else "green"
        table.add_row(
            f"{low:,}" if highs[low] == low + 1 else f"{low:,}-{highs[low] - 1:,}",
            ProgressBar(most, share, BAR, complete_style=colour, finished_style=colour),
            *(_share(shares[name].get(low, 0.0)) for name in splits),
            "cut" if cut else "",
        )
    return table


def _print_samples(console: Console, figures: SplitFigures, cleaner: str) -> None:
    samples = figures.cleaning.samples
    if not samples or cleaner == "none":
        return
    console.print(Text(f"\nRows before and after --data.cleaning {cleaner}", style="italic"))
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
                f"Longest passage of the {name} split whose {overlap.n}-grams all stand in the "
                f"training split, {overlap.longest:,} tokens: {text[:LONGEST_TEXT]}\n"
            )
        )


def _print_block(
    console: Console, name: SplitName, block: FirstBlock, data: WikiTextDataModule
) -> None:
    size = len(block.inputs)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"The first block of the {name} split: at each position, the model reads the "
        "input and is to say the target",
        title_justify="left",
        caption="Every target is the next position's input."
        if block.in_step
        else "A target is NOT the next position's input: the blocks are out of step.",
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
    """Show white space as one would type it."""
    return '"' + text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'
