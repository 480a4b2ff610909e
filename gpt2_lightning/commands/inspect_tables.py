"""The figures of `inspect` as tables, and the histogram of lengths."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rich import box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.inspection.findings import Findings, SplitFigures

BAR = 24  # cells of the histogram's longest bar


class _Line(NamedTuple):
    """A row of the table; one without a figure is a heading."""

    label: str
    figure: Callable[[SplitFigures], str] | None = None


def figures_table(
    columns: Mapping[str, tuple[SplitFigures, WikiTextDataModule]], title: str | None = None
) -> Table:
    """Put the figures of several splits, or of one under several cleaners, side by side.

    Args:
        columns: By the name of each, its figures and of what they are.
        title: Above the table.
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
        _Line("tokens to predict", lambda it: _count(it.fill.targets)),
        _Line("positions used", lambda it: _share(it.fill.share_used)),
        _Line("positions padded", lambda it: _share(it.fill.share_padded)),
        _Line("tokens cut off", lambda it: _share(it.fill.share_cut_off)),
        _Line("targets masked", lambda it: _share(it.fill.share_masked)),
        _Line("repetition"),
        _Line("repeated articles", lambda it: _count(it.duplicates.articles)),
        _Line("articles also in train", lambda it: _count(it.duplicates.in_training)),
        _Line(
            f"{ngrams} also in train",
            lambda it: _share(it.overlap.share if it.overlap else None),
        ),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _words(figures: SplitFigures, count: int) -> str:
    return _count(count if figures.cleaning.has_words else None)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def lengths_table(findings: Findings, data: WikiTextDataModule) -> Table:
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
        cut = data.blocks == "pad" and highs[low] > data.block_size
        share = shares[next(iter(splits))].get(low, 0.0)
        colour = "red" if cut else "green"
        table.add_row(
            f"{low:,}" if highs[low] == low else f"{low:,}-{highs[low]:,}",
            ProgressBar(
                most, share, BAR, style="grey19", complete_style=colour, finished_style=colour
            ),
            *(_share(shares[name].get(low, 0.0)) for name in splits),
            "" if not cut else "cut" if low > data.block_size else "in part",
        )
    return table
