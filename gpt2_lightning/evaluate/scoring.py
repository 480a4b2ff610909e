"""Nats of every unit of a text: windows over its tokens, shared by the processes of torchrun.

Lightning Fabric would start the same process group, and loses two things. Where rank 0 alone finds
a mistake (a full disk, no network) inside ``rank_zero_first``, the other ranks go on to a barrier
to which it never comes; here all of them raise it. And Fabric takes the variables of SLURM for a
call to start, so that one process in an allocation for several is refused or waits.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
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
    """This process among those of its run.

    Attributes:
        rank: This process.
        count: All of them.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """Meet the other processes, if torchrun started any.

        Sums are taken on the CPU, so that the same few numbers go the same way on every device.
        """
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls()
        # the others may wait while one downloads and tokenizes a large source
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))
        return cls(torch.distributed.get_rank(), count)

    @contextmanager
    def sharing_mistakes(self) -> Iterator[None]:
        """Run a block in all processes; a mistake that one of them finds is raised by all.

        They have all come to its end when one leaves it.

        Raises:
            UsageError: The first process' that found one.
        """
        mistake: UsageError | None = None
        try:
            yield
        except UsageError as error:
            mistake = error
        everyones = [mistake] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(everyones, mistake)
        for found in everyones:
            if found is not None:
                raise found

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, in all of them."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def leave(self) -> None:
        """Part from the others."""
        if self.count > 1:
            torch.distributed.destroy_process_group()


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


@dataclass(frozen=True)
class Score:
    """What a model makes of a text.

    Attributes:
        nats: Negative log-likelihood of every unit, shape ``(units,)``.
        predicted: Tokens that were predicted of every unit, shape ``(units,)``.
        seconds: Time it took, without loading.
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
        """Tokens that were predicted of the whole text."""
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

    Logits are computed where a token is scored, some hundred positions at a time. Windows of like
    length share a batch, and are padded on the right, which a causal model does not look at.

    Args:
        model: A causal language model in eval mode; its GELU becomes one kernel, which is quicker
            and holds less.
        ids: The run, shape ``(tokens,)``; it may be mapped from the disk.
        windows: What to score.
        batch_size: Windows at a time.
        units: Number of units the windows name.
        processes: The processes that share the windows.
        advance: Told how many more tokens were predicted.

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
