"""The quality of generated text in numbers: variety, repetition, endings and copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_lightning.inference.copies import longest_copies

Samples = Sequence[Sequence[int]]  # new ids of each sample, without prompt and end-of-text


@dataclass(frozen=True)
class Quality:
    """What can be counted of samples; None where there is nothing to count.

    Attributes:
        distinct_2: Unique 2-grams over all 2-grams of all samples, a share.
        distinct_3: The same of 3-grams.
        repeated_4: Share of a sample's 4-grams that stood in it before, the samples' mean.
        ended: Share of the samples that ended by themselves.
        longest_copy: Tokens of the longest run that any sample shares with the training split.
        longest_copies: The same of each sample; empty where it is unknown.
    """

    distinct_2: float | None
    distinct_3: float | None
    repeated_4: float | None
    ended: float | None
    longest_copy: int | None
    longest_copies: list[int]


def measure(
    samples: Samples,
    ended: Sequence[bool],
    training_ids: npt.NDArray[np.unsignedinteger[Any]] | None = None,
) -> Quality:
    """Measure samples.

    Args:
        samples: New ids of each sample, without prompt and end-of-text.
        ended: Whether each sample ended by itself.
        training_ids: The training split, shape ``(tokens,)``; without it, copies are unknown.
    """
    copies = [] if training_ids is None else longest_copies(samples, training_ids)
    return Quality(
        distinct_2=distinct_n(samples, 2),
        distinct_3=distinct_n(samples, 3),
        repeated_4=repeated_n(samples, 4),
        ended=sum(ended) / len(ended) if ended else None,
        longest_copy=max(copies) if copies else None,
        longest_copies=copies,
    )


def distinct_n(samples: Samples, n: int) -> float | None:
    """Return unique n-grams over all n-grams of all samples; None if there are none.

    1 where no n-gram stands twice. Falls with the number and the length of the samples, so
    compare like with like.

    Reference: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation
    Models", https://arxiv.org/abs/1510.03055; they divide by tokens instead.
    """
    grams = [gram for sample in samples for gram in _grams(sample, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated_n(samples: Samples, n: int) -> float | None:
    """Return the mean over the samples of 1 - unique n-grams / all n-grams.

    Samples of fewer than n tokens have no n-gram and are left out; None if no other is left.

    Reference: Welleck et al., "Neural Text Generation with Unlikelihood Training",
    https://arxiv.org/abs/1908.04319, where it is called seq-rep-n.
    """
    all_grams = [grams for sample in samples if (grams := _grams(sample, n))]
    if not all_grams:
        return None
    return sum(1 - len(set(grams)) / len(grams) for grams in all_grams) / len(all_grams)


def _grams(sample: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(sample[start:] for start in range(n)), strict=False))
