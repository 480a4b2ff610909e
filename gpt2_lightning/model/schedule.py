"""The learning rate's schedule: its shapes, its end, and how a time limit changes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from gpt2_lightning.errors import UsageError

ScheduleName = Literal["linear", "cosine", "wsd", "constant"]

Change = list[int]  # [step, end]


@dataclass
class Schedule:
    """What the learning rate is multiplied by, step by step.

    Attributes:
        shape: ``linear`` and ``cosine`` fall from 1 to 0 between warm-up and end; ``wsd`` (warm-up,
            stable, decay) stays at 1 and falls linearly in the last part; ``constant`` stays.
        warmup_steps: Optimizer steps over which the factor rises from 0 to 1.
        total_steps: Optimizer steps in all; None where only changes say it. Before the first of
            them the factor stays at 1 then.
        decay_share: Share of the steps after the warm-up in which ``wsd`` falls.
        changes: ``[step, end]``, in order: from that step on, what is left of the schedule is
            spread evenly over the steps up to that end. A first one at step 0 says how long the
            run is before anything was trained, and the warm-up is a tenth of that at most.

    Raises:
        UsageError: If the changes are no such pairs.

    Reference:
        The cosine without restarts of Loshchilov and Hutter, "SGDR",
        https://arxiv.org/abs/1608.03983; ``linear`` is the transformers Trainer's default;
        ``wsd`` is that of Hu et al., "MiniCPM", https://arxiv.org/abs/2404.06395.
    """

    shape: ScheduleName = "cosine"
    warmup_steps: int = 0
    total_steps: int | None = None
    decay_share: float = 0.2
    changes: Sequence[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        pairs = all(len(it) == 2 and 0 <= it[0] < it[1] for it in self.changes)
        if not pairs or any(one[0] >= other[0] for one, other in pairwise(self.changes)):
            raise UsageError(
                f"--model.schedule_changes {list(self.changes)}: pairs of a step and a later end "
                "are expected, by rising steps, such as [[0, 500], [20, 480]]. A run with a time "
                "limit writes them."
            )

    @property
    def end(self) -> int | None:
        """The optimizer step with which the schedule ends, if that is known."""
        return self.changes[-1][1] if self.changes else self.total_steps

    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by, from 0 to 1.

        Args:
            step: Optimizer steps taken before this one.
        """
        warmup = self.warmup_steps
        if self.changes and self.changes[0][0] == 0:
            warmup = min(warmup, max(self.changes[0][1] // 10, 1))
        if step < warmup:
            return step / warmup
        progress = self._progress(step, warmup)
        match self.shape:
            case "linear":
                return 1.0 - progress
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * progress))
            case "wsd":
                return min(1.0, (1.0 - progress) / self.decay_share)
            case "constant":
                return 1.0

    def _progress(self, step: int, begin: int) -> float:
        """Return how much of the schedule after its warm-up lies before a step: 0 to 1."""
        done, end = 0.0, self.total_steps

        def at(step: int) -> float:
            if end is None:
                return done
            share = 1.0 if end <= begin else (step - begin) / (end - begin)
            return done + (1.0 - done) * min(1.0, max(0.0, share))

        for changed, new_end in self.changes:
            if step < changed:
                break
            done, begin, end = at(max(changed, begin)), max(changed, begin), new_end
        return at(step)
