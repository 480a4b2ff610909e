"""Scores windows over a text's tokens, in nats by unit, in one process or several of torchrun.

Lightning Fabric would start the same process group, with two drawbacks. If only rank 0 has an error
(a full disk, no network) inside ``rank_zero_first``, the other ranks wait at a barrier that it
never reaches; here all of them raise it. And Fabric reads SLURM's variables as a request to start
several processes, so that one process in an allocation for several is refused or waits.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import fuse_gelu
from gpt2_lightning.model.loss import IGNORED, token_nats


@dataclass(frozen=True)
class Processes:
    """The process group.

    Attributes:
        rank: Of this process.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """Initialize the process group, if torchrun started several processes.

        Sums are computed on the CPU, which works for every device.
        """
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls()
        # a day: the others wait while one downloads and tokenizes a large source
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))
        return cls(torch.distributed.get_rank(), count)

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """Run a block in all processes; a UsageError of one of them is raised by all.

        It is also a barrier: no process leaves the block before all have reached its end.

        Raises:
            UsageError: That of the lowest rank.
        """
        own: UsageError | None = None
        try:
            yield
        except UsageError as error:
            own = error
        all_errors = [own] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(all_errors, own)
        for found in all_errors:
            if found is not None:
                raise found

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, to each of them."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def leave(self) -> None:
        """Destroy the process group."""
        if self.count > 1:
            torch.distributed.destroy_process_group()


class Window(NamedTuple):
    """The ids ``[begin, end)`` of a text; those from ``first`` on are scored, given the others.

    Attributes:
        begin: First id that the model sees.
        first: First id that is scored, after ``begin``.
        end: One past the last id.
        unit: Unit of the text (its article, say) to which the nats are added.
    """

    begin: int
    first: int
    end: int
    unit: int = 0


def sliding_windows(begin: int, end: int, *, context: int, stride: int) -> Iterator[Window]:
    """Slide a window over ids; each is scored once, with the most context the stride allows.

    The first id is not scored: it has no context. If the stride is the context, this is so for the
    first id of every window.

    Args:
        begin: First id.
        end: One past the last id.
        context: Ids in a window.
        stride: Ids by which the window moves.

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
    """Cut ids into windows that score ``context`` ids each; the last one extends back to be full.

    Args:
        begin: The end-of-text before the first id, which is context only.
        end: One past the last id.
        context: Ids that are scored at a time, and that the model sees.
        unit: Unit of the ids.

    Reference:
        lm-evaluation-harness' rolling log-likelihood with one token of context,
        https://github.com/EleutherAI/lm-evaluation-harness, ``lm_eval/utils.py``.
    """
    for first in range(begin + 1, end, context):
        stop = min(first + context, end)
        yield Window(max(begin, stop - 1 - context), first, stop, unit)


def block_windows(
    ids: npt.NDArray[Any], *, block_size: int, begins: int | None = None
) -> Iterator[Window]:
    """Cut a run of ids into the blocks of training (``--data.blocks pack``).

    Args:
        ids: The ids, the leading end-of-text among them.
        block_size: Targets in a block.
        begins: The end-of-text, with which a document begins, to keep attention within documents.
    """
    for start in range(0, len(ids) - 1, block_size):
        end = min(start + block_size, len(ids) - 1)
        cuts: list[int] = []
        if begins is not None:
            cuts = (np.flatnonzero(ids[start + 1 : end] == begins) + start + 1).tolist()
        for first, following in pairwise([start, *cuts, end]):
            yield Window(first, first + 1, following + 1)


@dataclass(frozen=True)
class Score:
    """The score of a text.

    Attributes:
        nats: Negative log-likelihood of every unit, shape ``(units,)``.
        predicted: Predicted tokens of every unit, shape ``(units,)``.
        seconds: Duration of the scoring.
    """

    nats: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    seconds: float

    @property
    def total_nats(self) -> float:
        """Nats of the whole text."""
        return float(self.nats.sum())

    @property
    def total_predicted(self) -> int:
        """Predicted tokens of the whole text."""
        return int(self.predicted.sum())


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    ids: npt.NDArray[Any],
    windows: Iterable[Window],
    *,
    batch_size: int,
    units: int = 1,
    processes: Processes | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Score:
    """Score windows over a run of ids.

    Logits are computed only where a token is scored, some hundred positions at a time. Windows of
    similar length share a batch, padded on the right, which a causal model does not see.

    Args:
        model: A causal language model in eval mode; its GELU is replaced by one fused kernel, which
            is faster and needs less memory.
        ids: The text, shape ``(tokens,)``; it may be memory-mapped.
        windows: The windows to score.
        batch_size: Windows at a time.
        units: Number of units.
        processes: The processes that share the windows.
        advance: Called with the number of further predicted tokens.

    Raises:
        UsageError: If the model's logits are not numbers.
    """
    processes = processes or Processes()
    fuse_gelu(model)
    in_order = sorted(windows, key=lambda window: window.end - window.begin, reverse=True)
    mine = in_order[processes.rank :: processes.count]
    # float64 on the CPU: a sum of millions of terms, on devices that may not have it
    nats = torch.zeros(units, dtype=torch.float64)
    predicted = torch.zeros(units, dtype=torch.int64)
    start = time.perf_counter()
    for begin in range(0, len(mine), batch_size):
        batch = mine[begin : begin + batch_size]
        inputs, targets = _gather(ids, batch)
        rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
        unit_of_row = torch.tensor([window.unit for window in batch])
        hidden = model.base_model(inputs.to(model.device), use_cache=False).last_hidden_state
        head = model.get_output_embeddings().weight
        found = token_nats(
            hidden[rows.to(model.device), columns.to(model.device)],
            head,
            targets[rows, columns].to(model.device),
        )
        nats.index_add_(0, unit_of_row[rows], found.cpu().double())
        predicted.index_add_(0, unit_of_row[rows], torch.ones_like(rows))
        advance(len(rows))
    nats, predicted = processes.sum(nats), processes.sum(predicted)
    if not bool(nats.isfinite().all()):
        raise UsageError(
            "--model: its logits are not numbers (NaN or infinite). The weights are damaged, or "
            "its training has diverged; with --dtype bf16, try fp32."
        )
    return Score(nats.numpy(), predicted.numpy(), time.perf_counter() - start)


def _gather(ids: npt.NDArray[Any], windows: list[Window]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, both of shape ``(windows, longest window - 1)``."""
    longest = max(window.end - window.begin for window in windows) - 1
    inputs = np.zeros((len(windows), longest), np.int64)
    targets = np.full_like(inputs, IGNORED)
    for row, window in enumerate(windows):
        run = ids[window.begin : window.end]
        inputs[row, : len(run) - 1] = run[:-1]
        known = window.first - window.begin - 1
        targets[row, known : len(run) - 1] = run[known + 1 :]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
