"""Nats of the targets, without the whole vocabulary's logits in memory."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.functional import cross_entropy, linear

IGNORED = -100  # targets that are not counted

# Rows of logits held at a time. Measured on CPU, 512 rows are as quick as more and hold 100 MB at
# GPT-2's vocabulary; torch's automatic choice was four times slower.
ROWS_AT_A_TIME = 512

HAS_LINEAR_CROSS_ENTROPY = hasattr(functional, "linear_cross_entropy")  # from torch 2.13 on


def summed_nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of the targets, in nats, summed.

    The projection onto the vocabulary and its cross-entropy are taken in pieces, and so are their
    gradients: peak memory does not hold ``(batch, block, vocabulary)`` logits. Under autocast the
    matrix products are of autocast's type, the rest is fp32.

    Args:
        hidden: Last hidden states, shape ``(batch, block, width)``.
        weight: Output embedding, shape ``(vocabulary, width)``.
        targets: Ids to predict, -100 where there is none, shape ``(batch, block)``.

    Returns:
        A scalar in fp32; 0 where no target counts.
    """
    rows, ids = hidden.flatten(0, -2), targets.flatten()
    autocast = torch.is_autocast_enabled(hidden.device.type)
    if not autocast and HAS_LINEAR_CROSS_ENTROPY:
        return functional.linear_cross_entropy(
            rows.to(weight.dtype),
            weight,
            ids,
            reduction="sum",
            ignore_index=IGNORED,
            options=torch.nn.LinearCrossEntropyOptions(
                batch_chunk_size=ROWS_AT_A_TIME, chunking_method=None
            ),
        )
    if not torch.is_grad_enabled():
        return token_nats(hidden, weight, targets).sum()
    kind = torch.get_autocast_dtype(rows.device.type) if autocast else weight.dtype
    nats: Tensor = _SummedNats.apply(rows.to(kind), weight, ids)  # type: ignore[no-untyped-call]
    return nats


class _SummedNats(torch.autograd.Function):
    """The sum and its gradients in one pass: the weight is cast once, no logits are made twice.

    `linear_cross_entropy` knows no autocast: given fp32 it multiplies in fp32, which is a GPU's
    slow path, and given bf16 it rounds the sum itself to bf16.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        of_rows = torch.empty_like(rows)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        kind = torch.promote_types(rows.dtype, torch.float32)
        nats = torch.zeros((), device=rows.device, dtype=kind)
        narrow = weight.to(rows.dtype)
        pieces = zip(*(it.split(ROWS_AT_A_TIME) for it in (rows, ids, of_rows)), strict=True)
        with torch.autocast(rows.device.type, enabled=False):
            for piece, targets, of_piece in pieces:
                nats += _add_gradients(piece, narrow, targets, of_piece, of_weight)
        ctx.gradients = of_rows, of_weight
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_nats: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (of_rows, of_weight), ctx.gradients = ctx.gradients, None
        return of_rows * of_nats, None if of_weight is None else of_weight.mul_(of_nats), None


def _add_gradients(
    rows: Tensor, weight: Tensor, targets: Tensor, of_rows: Tensor, of_weight: Tensor | None
) -> Tensor:
    """Return a piece's nats; write their gradient of the rows, add that of a trained weight."""
    counted = (targets != IGNORED).unsqueeze(1)
    index = targets.unsqueeze(1).where(counted, 0)
    logits = linear(rows, weight)
    log_likelihoods = logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nats = -log_likelihoods.gather(1, index).where(counted, 0).sum()
    of_logits = log_likelihoods.exp_()
    of_logits.scatter_add_(1, index, of_logits.new_full(index.shape, -1))
    narrow = of_logits.to(weight.dtype)
    torch.mm(narrow, weight, out=of_rows).mul_(counted)
    if of_weight is not None:
        of_weight += narrow.t() @ (rows * counted)
    return nats


@torch.no_grad()
def token_nats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of every target, without gradients.

    Args:
        hidden: Last hidden states, shape ``(..., width)``.
        weight: Output embedding, shape ``(vocabulary, width)``.
        targets: Ids to predict, -100 where there is none, shape ``(...)``.

    Returns:
        Nats, in fp32, shape ``(...)``; 0 where the target is -100.
    """
    if torch.is_autocast_enabled(weight.device.type):
        weight = weight.to(torch.get_autocast_dtype(weight.device.type))  # once for all pieces
    pieces = zip(
        hidden.flatten(0, -2).split(ROWS_AT_A_TIME),
        targets.flatten().split(ROWS_AT_A_TIME),
        strict=True,
    )
    nats = [
        cross_entropy(linear(rows, weight).float(), ids, reduction="none", ignore_index=IGNORED)
        for rows, ids in pieces
    ]
    return torch.cat(nats).reshape(targets.shape)
