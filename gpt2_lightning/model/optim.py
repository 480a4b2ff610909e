"""AdamW with decay for matrices only, clipping for every strategy, learning-rate schedules."""

import math
from collections.abc import Collection, Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def build_adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    decayed: Collection[str],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool,
) -> torch.optim.AdamW:
    """Build AdamW, whose decay spares biases and layer norms.

    Args:
        parameters: Names and parameters of the model; those that require a gradient are trained.
        decayed: Names of those that decay: embeddings and matrices.
        learning_rate: Peak learning rate.
        weight_decay: Of those that decay.
        betas: Decay rates of the running means of the gradient and its square.
        fused: Take the step in one kernel: quicker, and impossible with scaled fp16 gradients.

    Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
    https://arxiv.org/abs/1711.05101.
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [it for name, it in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [it for name, it in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def clip_gradient_norm(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients down to a norm of at most ``limit``.

    Args:
        parameters: Those of the model, in shards or whole.
        limit: Largest Euclidean norm over all parameters; infinity leaves them as they are.

    Returns:
        The norm before, over all ranks' shards, a scalar.
    """
    trained = [it for it in parameters if it.grad is not None]
    norm = nn.utils.get_total_norm([cast(Tensor, it.grad) for it in trained])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()  # a collective: each rank has the norm of its shards alone
    if limit < math.inf:
        nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm


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
