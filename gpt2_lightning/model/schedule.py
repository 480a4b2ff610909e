"""The learning-rate factor, a pure function of the step."""

import math
from typing import Literal

ScheduleName = Literal["linear", "cosine", "constant"]


def learning_rate_factor(
    step: int, *, schedule: ScheduleName, warmup_steps: int, total_steps: int
) -> float:
    """Return what the learning rate is multiplied by.

    Args:
        step: Optimizer steps taken before this one.
        schedule: ``linear`` and ``cosine`` fall from 1 to 0 between warm-up and end.
        warmup_steps: Optimizer steps over which the factor rises from 0 to 1.
        total_steps: Optimizer steps in all.

    Returns:
        A factor from 0 to 1.

    Reference:
        The cosine without restarts of Loshchilov and Hutter, "SGDR",
        https://arxiv.org/abs/1608.03983; ``linear`` is the transformers Trainer's default.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    match schedule:
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "constant":
            return 1.0
