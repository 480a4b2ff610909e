"""Nats of the targets, without the whole vocabulary's logits in memory."""

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # targets that are not counted

# Rows of logits held at a time. Measured on CPU, 512 rows are as quick as more and hold 100 MB at
# GPT-2's vocabulary; torch's automatic choice was four times slower.
ROWS_AT_A_TIME = 512

_OPTIONS = LinearCrossEntropyOptions(batch_chunk_size=ROWS_AT_A_TIME, chunking_method=None)


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
    if torch.is_autocast_enabled(hidden.device.type):
        return _summed_nats_in_autocast(rows, weight, ids)
    return linear_cross_entropy(
        rows.to(weight.dtype),
        weight,
        ids,
        reduction="sum",
        ignore_index=IGNORED,
        options=_OPTIONS,
    )


def _summed_nats_in_autocast(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    # linear_cross_entropy knows no autocast: given fp32 it multiplies in fp32, which is a GPU's
    # slow path, and given bf16 it rounds the sum itself to bf16. So pieces of our own, whose
    # logits the backward pass computes again.
    pieces = zip(rows.split(ROWS_AT_A_TIME), ids.split(ROWS_AT_A_TIME), strict=True)
    nats: list[Tensor] = [
        checkpoint(_nats_of_piece, *piece, weight, use_reentrant=False, preserve_rng_state=False)
        for piece in pieces
    ]
    return torch.stack(nats).sum()


def _nats_of_piece(rows: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
    logits = linear(rows, weight)
    return cross_entropy(logits.float(), ids, reduction="sum", ignore_index=IGNORED)


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
