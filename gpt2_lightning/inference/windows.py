"""Windows over a run of ids: what a model sees at a time, and which ids are scored there."""

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """Ids ``begin`` to ``end`` of a run; those from ``first`` on are scored, given those before.

    Attributes:
        begin: First id the model sees.
        first: First id that is scored, after ``begin``.
        end: One past the last id.
        unit: Of the text (its article, say) whose nats these are.
    """

    begin: int
    first: int
    end: int
    unit: int = 0


def sliding_windows(begin: int, end: int, *, context: int, stride: int) -> Iterator[Window]:
    """Slide a window over ids; each is scored once, with the most context the stride allows.

    The first id is not scored: it has no context. With a stride of the whole context nor is any
    other window's first.

    Args:
        begin: First id.
        end: One past the last id.
        context: Ids in a window.
        stride: Ids by which the window moves on.

    Reference:
        "Perplexity of fixed-length models",
        https://huggingface.co/docs/transformers/perplexity.
    """
    scored = begin
    for start in range(begin, end, stride):
        stop = min(start + context, end)
        first = max(scored, start + 1)
        if first < stop:
            yield Window(start, first, stop)
        scored = stop
        if stop == end:
            return


def rolling_windows(begin: int, end: int, *, context: int, unit: int = 0) -> Iterator[Window]:
    """Cut ids into windows that score ``context`` ids each; the last reaches back to be full.

    Args:
        begin: The end-of-text before the first id; it is context alone.
        end: One past the last id.
        context: Ids that are scored at a time, which are also those that the model sees.
        unit: The unit of all of them.

    Reference:
        lm-evaluation-harness' rolling log-likelihood with one token of context,
        https://github.com/EleutherAI/lm-evaluation-harness, ``lm_eval/utils.py``.
    """
    for first in range(begin + 1, end, context):
        stop = min(first + context, end)
        yield Window(max(begin, stop - 1 - context), first, stop, unit)


def block_windows(ids: int, *, block_size: int) -> Iterator[Window]:
    """Cut a run of ids into the blocks of training (``--data.blocks pack``).

    Args:
        ids: Number of ids, the leading end-of-text counted.
        block_size: Targets in a block.
    """
    for start in range(0, ids - 1, block_size):
        yield Window(start, start + 1, min(start + block_size + 1, ids))
