"""Scoring a text: the nats of every token, summed by unit, exact whatever the batch size."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.processes import Processes
from gpt2_lightning.inference.windows import Window
from gpt2_lightning.model.causal_lm import fuse_gelu
from gpt2_lightning.model.loss import IGNORED, token_nats


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
