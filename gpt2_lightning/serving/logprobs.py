"""What a model gives the tokens of a text, and which it finds likelier."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.serving.writer import Logprob

ROWS_AT_A_TIME = 256  # rows of logits: 51 MB of them with GPT-2's vocabulary


def logprobs_of(logits: Tensor, ids: Sequence[int], top: int) -> list[Logprob]:
    """Return the logarithms of the probabilities of ids, and of the likeliest.

    Args:
        logits: The model's own, untouched by temperature and the like, ``(rows, vocabulary)``.
        ids: The token of each row.
        top: How many of the likeliest.
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(-1, torch.tensor(ids, device=logits.device)[:, None]) - total
    best, which = logits.topk(min(top, logits.shape[-1]), dim=-1)
    rows = zip(chosen[:, 0].tolist(), which.tolist(), (best - total).tolist(), strict=True)
    return [Logprob(own, list(zip(ranked, values, strict=True))) for own, ranked, values in rows]


def prompt_logprobs(
    model: PreTrainedModel, hidden: Tensor, prompt: Sequence[int], top: int
) -> list[Logprob]:
    """Return what the model gave each token of a prompt; its first one follows nothing.

    Args:
        model: The model.
        hidden: Last hidden states, shape ``(tokens, width)``.
        prompt: The ids.
        top: How many of the likeliest tokens beside each.
    """
    found = [Logprob(None, [])]
    head = model.get_output_embeddings()
    for begin in range(0, len(prompt) - 1, ROWS_AT_A_TIME):
        targets = prompt[begin + 1 : begin + 1 + ROWS_AT_A_TIME]
        found += logprobs_of(head(hidden[begin : begin + len(targets)]), targets, top)
    return found
