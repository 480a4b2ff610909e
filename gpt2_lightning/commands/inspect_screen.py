"""What `inspect` shows: tables, a histogram, rows before and after, a block, and notes."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2_lightning.commands.differences import differences
from gpt2_lightning.commands.inspect_tables import figures_table, lengths_table
from gpt2_lightning.data.cleaning import CleaningName
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.rows import SplitName
from gpt2_lightning.inspection.advice import advice
from gpt2_lightning.inspection.duplicates import Duplicate
from gpt2_lightning.inspection.findings import Findings, SplitFigures
from gpt2_lightning.inspection.first_block import FirstBlock

SHOWN_AT_START, SHOWN_AT_END = 6, 3  # positions of the first block
LONGEST_TEXT = 240  # characters shown of the first block

Found = tuple[Findings, WikiTextDataModule]


def show(console: Console, found: Mapping[CleaningName, Found], chosen: CleaningName) -> None:
    """Print what was found, in 80 columns.

    Args:
        console: Where.
        found: The figures under each cleaner that was asked for, and of what they are.
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
    if findings.taken:
        lines["not in it"] = f"{' and '.join(findings.taken)}: taken out of the training text"
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
        title=f"The first block of the {name} split: what is read, and to be said next",
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
