"""Perplexity and its kin: summed nats over counts, exact over ranks and batch sizes."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def _sum_dtype() -> torch.dtype:
    # Apple's GPUs have no float64
    return torch.float32 if torch.backends.mps.is_available() else torch.float64


class CrossEntropy(Metric):
    """Mean nats per predicted token: summed nats over the number of targets.

    Nothing is averaged before the division, so short batches and uneven ranks weigh what they
    hold.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    nats: Tensor
    targets: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nats", torch.zeros((), dtype=_sum_dtype()), dist_reduce_fx="sum")
        self.add_state("targets", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            nats: Summed nats of the batch's targets, a scalar.
            targets: Number of the batch's targets, an integer scalar.
        """
        self.nats += nats.to(self.nats.dtype)
        self.targets += targets

    def compute(self) -> Tensor:
        """Return nats per token."""
        return self.nats / self.targets


class Perplexity(CrossEntropy):
    """exp(nats / targets): the inverse geometric mean of the targets' probabilities.

    Reference: Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition
    tasks", 1977.
    """

    def compute(self) -> Tensor:
        """Return the perplexity per token."""
        return super().compute().exp()


class BitsPerByte(CrossEntropy):
    """Total nats over ln 2 and the bytes of the original text; comparable across tokenizers.

    Args:
        original_bytes: UTF-8 bytes of the text whose every token is counted.
    """

    def __init__(self, original_bytes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.original_bytes = original_bytes

    def compute(self) -> Tensor:
        """Return bits per byte."""
        return self.nats / (math.log(2) * self.original_bytes)
