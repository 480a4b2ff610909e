"""One sample while it is being written: its text, its log-probabilities, and its request."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.data.token_text import Logprob, Piece, TextAssembler, TokenBytes
from gpt2_lightning.model.decoding import processors_for
from gpt2_lightning.model.sampling import SamplingOptions


class Draft:
    """A sample of a request: what is asked for, and how far it has come.

    Its text depends on nothing else in the batch.

    Args:
        prompt: Ids to continue.
        options: How to draw; no tokens at all may be asked for.
        seed: Of this sample.
        tokens: What each token adds to a text.
        end_of_text: Id that ends the text.
        logprobs: How many of the likeliest tokens are wanted beside each; None for no logprobs.
        echo: Whether the prompt is a part of the answer.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: SamplingOptions,
        seed: int,
        *,
        tokens: TokenBytes,
        end_of_text: int,
        logprobs: int | None = None,
        echo: bool = False,
    ) -> None:
        self.prompt = list(prompt)
        self.max_tokens = options.max_new_tokens
        self.logprobs = logprobs
        self.echo = echo
        self.new: list[int] = []
        self.turn_began = 0  # tokens that were new when it got its slot
        self.ended = False
        after = () if echo else self.prompt
        self._text = TextAssembler(tokens, options.stop, end_of_text, after)
        self._processors = processors_for(
            options, [seed], prompt_tokens=len(self.prompt), end_of_text=end_of_text
        )

    @property
    def ids(self) -> list[int]:
        """The prompt and what is written after it."""
        return self.prompt + self.new

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is simply the likeliest."""
        return not self._processors

    def draw(self, logits: Tensor) -> int:
        """Return the next token's id, drawn from logits of shape ``(1, vocabulary)``."""
        ids = torch.tensor([self.ids], device=logits.device)
        return int(self._processors(cast(torch.LongTensor, ids), logits.float()).argmax())

    def begin(self, logprobs: Sequence[Logprob] | None) -> Piece | None:
        """Return the prompt, where it is a part of the answer.

        Args:
            logprobs: Of each of its tokens, where they are asked for.
        """
        self.ended = self.max_tokens == 0
        if not self.echo:
            return None
        return self._text.add_prompt(self.prompt, logprobs, last=self.ended)

    def add(self, token: int, logprob: Logprob | None) -> Piece:
        """Take the next token; return what has become final."""
        self.new.append(token)
        piece = self._text.add(token, logprob, last=len(self.new) == self.max_tokens)
        self.ended = piece.finish is not None
        return piece


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


class Job:
    """The samples of a request.

    Args:
        drafts: The samples, nothing of them written.
        notify: Told, in the engine's thread, which sample has come further, and what became final;
            it must not wait.
        fail: Told, in whatever thread, that the job was given up, and why.
    """

    def __init__(
        self,
        drafts: Sequence[Draft],
        notify: Callable[[int, Piece], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.drafts = list(drafts)
        self.notify = notify
        self.fail = fail
        self.cancelled = False


class Row(NamedTuple):
    """One sample of a job, as a row of the batch or in the queue."""

    job: Job
    number: int

    @property
    def draft(self) -> Draft:
        """The sample."""
        return self.job.drafts[self.number]

    @property
    def is_first(self) -> bool:
        """Whether its job has not begun while it waits."""
        return self.number == 0 and not self.draft.new

    def tell(self, piece: Piece | None) -> None:
        """Tell of what has become final, if anything has."""
        if piece is not None and piece != Piece("", [], None):
            self.job.notify(self.number, piece)
