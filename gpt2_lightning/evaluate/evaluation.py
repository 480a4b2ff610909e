"""A model, a text and a protocol in; a card out."""

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np

from gpt2_lightning import __version__
from gpt2_lightning.data.articles import Rows, SplitName, as_articles
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.tokenizer import lost_by_tokens
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.card import Card, figures
from gpt2_lightning.evaluate.protocol import OFFICIAL_TEXTS, EvaluatedSplit, Protocol, comparability
from gpt2_lightning.evaluate.scoring import (
    Processes,
    Score,
    Window,
    block_windows,
    rolling_windows,
    score,
    sliding_windows,
)
from gpt2_lightning.evaluate.text import ScoredText, count_text, read_articles, read_joined
from gpt2_lightning.generate.text_model import TextModel
from gpt2_lightning.model.gpt2 import count_parameters, positions_of

NO_WORDS = "most of the text is in a script without spaces between words"


def rows_of(data: WikiTextDataModule, split: EvaluatedSplit) -> Rows:
    """Return the rows to evaluate, articles marked.

    Raises:
        UsageError: If the source has no such split.
    """
    if split != "all":
        return data.splits([split])[split]
    found = data.open()
    if len(found) > 1:
        raise UsageError(
            f"--split all: {data.source} has several splits. Choose one: {', '.join(found)}."
        )
    return as_articles(next(iter(found.values())))


def evaluate(
    loaded: TextModel,
    name: str,
    data: WikiTextDataModule,
    split: EvaluatedSplit,
    protocol: Protocol,
    *,
    dtype: str = "fp32",
    batch_size: int = 8,
    processes: Processes | None = None,
    advance: Callable[[int, int], None] = lambda tokens, total: None,
) -> tuple[Card, Score, ScoredText]:
    """Score a split and fill in its card.

    Args:
        loaded: The model, on its device and in its type, and its tokenizer.
        name: Value of ``--model``.
        data: The source, with a tokenizer folder for the protocol ``training``.
        split: Of the source.
        protocol: How to score.
        dtype: Name of the model's type, for the card.
        batch_size: Windows at a time.
        processes: The processes that share the work.
        advance: Called with the number of further predicted tokens, and the total.

    Raises:
        UsageError: If model, text and protocol do not fit together.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    processes = processes or Processes()
    if len(tokenizer) > model.config.vocab_size:
        raise UsageError(
            f"--model {name}: its tokenizer has {len(tokenizer)} tokens, the model only "
            f"{model.config.vocab_size}: it is another model's. Fetch the model again."
        )
    protocol = protocol.for_model(positions_of(model))
    for turn in range(2):  # one process writes the tokens, the others find them
        with processes.sharing_errors():
            if (processes.rank > 0) == (turn > 0):
                text, windows = _read(loaded, data, split, protocol)
    total = sum(window.end - window.first for window in windows) // processes.count
    found = score(
        model,
        text.ids,
        windows,
        batch_size=batch_size,
        units=len(text.tokens),
        processes=processes,
        advance=lambda tokens: advance(tokens, total),
    )
    card = _card(loaded, name, data, split, protocol, text, found, dtype, batch_size, processes)
    return card, found, text


def _read(
    loaded: TextModel, data: WikiTextDataModule, split: EvaluatedSplit, protocol: Protocol
) -> tuple[ScoredText, list[Window]]:
    options: dict[str, Any] = {
        "cleaner": data.cleaner,
        "tokenizer": loaded.tokenizer,
        "cache": data.cache_dir,
    }
    if protocol.name == "training":
        if split == "all":
            raise UsageError("--split all: --protocol training needs train, validation or test.")
        if data.block_size > (positions := positions_of(loaded.model)):
            raise UsageError(
                f"--data.block_size {data.block_size}: the model has {positions} positions. "
                f"--data.block_size {positions} would work."
            )
        return _read_blocks(data, split)
    assert protocol.context is not None
    context, rows = protocol.context, rows_of(data, split)
    if protocol.name == "articles":
        text = read_articles(rows, **options)
        return text, [
            window
            for unit, (start, tokens) in enumerate(zip(text.starts, text.tokens, strict=True))
            for window in rolling_windows(
                int(start) - 1, int(start + tokens), context=context, unit=unit
            )
        ]
    assert protocol.stride is not None
    text = read_joined(rows, joiner=protocol.joiner, **options)
    start, tokens = int(text.starts[0]), int(text.tokens[0])
    if tokens < 2:
        raise UsageError(f"--split {split}: a text of one token predicts none.")
    windows = sliding_windows(start, start + tokens, context=context, stride=protocol.stride)
    return text, list(windows)


def _read_blocks(data: WikiTextDataModule, split: SplitName) -> tuple[ScoredText, list[Window]]:
    """Read a split as training does; end-of-texts between articles are predicted, too."""
    data.prepare([split])
    data.setup("validate")
    store = data.stores[split]
    match data.blocks:
        case "pack":
            begins = data.tokenizer.eos_token_id if data.attend == "document" else None
            windows = list(block_windows(store.ids, block_size=data.block_size, begins=begins))
        case "pad":
            windows = list(_padded_windows(store.starts, data.block_size))
    if not windows:
        raise UsageError(f"--split {split}: there is nothing to predict in it.")
    how = f"blocks of {data.block_size} tokens, --data.blocks {data.blocks}"
    how += f", --data.attend {data.attend}" if data.attend == "document" else ""
    tokens = np.asarray([len(store.ids) - (data.blocks == "pack")])
    counts = count_text(data.splits([split])[split], by_article=False, store=store.folder)
    lost = store.manifest.lost
    return ScoredText(store.ids, np.zeros(1, np.int64), tokens, how, counts, lost), windows


def _padded_windows(starts: Any, block_size: int) -> Iterator[Window]:
    for start, following in pairwise(starts):
        end = min(int(following), int(start) + block_size)
        if end - start > 1:
            yield Window(int(start), int(start) + 1, end)


def _card(
    loaded: TextModel,
    name: str,
    data: WikiTextDataModule,
    split: EvaluatedSplit,
    protocol: Protocol,
    text: ScoredText,
    found: Score,
    dtype: str,
    batch_size: int,
    processes: Processes,
) -> Card:
    counts, training = text.counts, protocol.name == "training"
    by_harness = protocol.name == "articles"
    words = counts.harness_words if by_harness else counts.words
    known = OFFICIAL_TEXTS.get(counts.sha256)
    # as val/bits_per_byte: every token that is left is predicted, or none is
    tokens = found.predicted if training else text.tokens
    numbers = figures(found, tokens=tokens, words=words, bytes_=counts.bytes)
    lost = _why_lost(loaded, data, split, protocol, text)
    no_words = NO_WORDS if counts.without_spaces else None
    left_out = ["word_perplexity"] if no_words else []
    if lost is not None:
        left_out = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    for figure in left_out:
        numbers[figure] = None
        if numbers["intervals"]:
            numbers["intervals"][figure] = None
    predicted = found.total_predicted
    return Card(
        model=name,
        revision=getattr(loaded.model.config, "_commit_hash", None),
        parameters=count_parameters(loaded.model),
        source=data.source,
        subset=data.subset,
        split=split,
        text=known,
        sha256=counts.sha256,
        reading=text.reading
        + (", held out of the training text here" if split in data.held_out_from_train else "")
        + _attends_otherwise(protocol, data),
        cleaning=data.cleaner.name,
        protocol=protocol.name,
        context=data.block_size if training else protocol.context or 0,
        stride=protocol.stride,
        first_token=_first_token(protocol, data),
        articles=len(counts.words) if by_harness else None,
        tokens=int(text.tokens.sum()),
        tokens_predicted=predicted,
        words=int(words.sum()),
        words_rule=r're.split(r"\s+", article)' if by_harness else "str.split",
        words_by_split=int(counts.words.sum()),
        words_by_harness=int(counts.harness_words.sum()),
        bytes=int(counts.bytes.sum()),
        nats=found.total_nats,
        dtype=dtype,
        device=str(loaded.model.device),
        processes=processes.count,
        batch_size=batch_size,
        versions={
            "gpt2-lightning": __version__ or "not installed",
            **{library: version(library) for library in ("torch", "transformers")},
            "Python": platform.python_version(),
        },
        seconds=found.seconds,
        tokens_per_second=predicted / max(found.seconds, 1e-9),
        lost=lost,
        no_words=no_words,
        comparable=comparability(
            text=known,
            cleaning=data.cleaner.name,
            protocol=protocol.name,
            reading=text.reading,
            dtype=dtype,
            whole=lost is None,
        ),
        **numbers,
    )


def _attends_otherwise(protocol: Protocol, data: WikiTextDataModule) -> str:
    if data.attend == "document" and protocol.name in ("disjoint", "sliding"):
        return ", attention across documents (--data.attend document kept it within them)"
    return ""


def _first_token(protocol: Protocol, data: WikiTextDataModule) -> str:
    match protocol.name:
        case "disjoint" | "sliding" if protocol.stride == protocol.context:
            return "the first of every window has no context and is not predicted"
        case "disjoint" | "sliding":
            return "the first of the text has no context and is not predicted"
        case "articles":
            return "the first of every article follows an end-of-text"
        case "training" if data.blocks == "pad":
            return "the first of every row has no context and is not predicted"
        case "training":
            return "the first of the text follows an end-of-text"


def _why_lost(
    loaded: TextModel,
    data: WikiTextDataModule,
    split: EvaluatedSplit,
    protocol: Protocol,
    text: ScoredText,
) -> str | None:
    """Return why the original text's words and bytes were not all predicted; None if they were.

    The harness' own detokeniser loses a few; by its convention they count all the same.
    """
    if protocol.name == "training" and split != "all":
        return data.original_bytes(split)[1] or None
    if not data.cleaner.lossless:
        return f"--data.cleaning {data.cleaner.name} loses text"
    if data.cleaner.name == "detokenize" and not text.wikitext:
        return "--data.cleaning detokenize loses nothing of WikiText, which this is not"
    if lost := lost_by_tokens(text.lost, loaded.tokenizer):
        return f"the tokenizer loses text ({lost})"
    return None
