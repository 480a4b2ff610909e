"""One sample while it is being written: its text, its log-probabilities, and its request."""

import codecs
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.data.token_text import TokenBytes
from gpt2_lightning.model.decoding import processors_for
from gpt2_lightning.model.sampling import SamplingOptions

Finish = Literal["stop", "length"]


class Logprob(NamedTuple):
    """What the model gave a token.

    Attributes:
        chosen: Natural logarithm of its probability; None for a text's first token.
        top: The likeliest tokens' ids and the same for them, the likeliest first.
    """

    chosen: float | None
    top: list[tuple[int, float]]


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
        label: Its text, or its bytes where these make no characters.
        offset: Where it begins, in characters of the answer's text.
        logprob: What the model gave it.
    """

    label: str
    offset: int
    logprob: Logprob


class Piece(NamedTuple):
    """What has become final of a sample.

    Attributes:
        text: More of its text.
        tokens: More of its tokens, where they were asked for.
        finish: Why it ended, in its last piece.
    """

    text: str
    tokens: list[Token]
    finish: Finish | None


class Writer:
    """Puts a sample's text together.

    Args:
        tokens: What each token adds.
        stop: Strings before which the text ends.
        end_of_text: Id that ends the text and is no part of it.
        after: Ids of the text that it continues, where they are no part of it.
    """

    def __init__(
        self,
        tokens: TokenBytes,
        stop: Sequence[str],
        end_of_text: int,
        after: Sequence[int] = (),
    ) -> None:
        self.stopped = False
        self._tokens = tokens
        self._stop = stop
        self._end_of_text = end_of_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids = list(after)
        self._pending = ""  # decoded, but it may be the beginning of a stop string
        self._released = 0  # characters
        self._held: list[tuple[int, Token]] = []  # tokens, and where their text ends

    def add_prompt(
        self, ids: Sequence[int], logprobs: Sequence[Logprob] | None, *, last: bool
    ) -> Piece:
        """Take an echoed prompt, in which stop strings stop nothing.

        Args:
            ids: Its ids.
            logprobs: What the model gave each, where that is asked for.
            last: Whether no token will follow.

        Returns:
            All of it but, unless it is the last, a last character that is cut.
        """
        for number, token in enumerate(ids):
            content = self._tokens.of(token, self._ids)
            self._keep(token, content, None if logprobs is None else logprobs[number])
        if last:
            self._pending += self._decoder.decode(b"", final=True)
        text, self._pending = self._pending, ""
        return self._release(text, "length" if last else None)

    def add(self, token: int, logprob: Logprob | None, *, last: bool) -> Piece:
        """Take the next token.

        Args:
            token: Its id.
            logprob: What the model gave it, where that is asked for.
            last: Whether no other will follow, if this one does not end the text by itself.
        """
        ended = token == self._end_of_text
        self._keep(token, b"" if ended else self._tokens.of(token, self._ids), logprob)
        if ended or last:
            self._pending += self._decoder.decode(b"", final=True)
        found = [at for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._pending = self._pending[: min(found)], ""
            end = self._released + len(text)
            self._held = [(end, token) for _, token in self._held if token.offset < end]
            return self._release(text, "stop")
        finish: Finish | None = "stop" if ended else "length" if last else None
        cut = len(self._pending) - (0 if finish else self._beginning_of_stop())
        # where tokens are told of, each comes with all of its text
        parted = [it.offset for end, it in self._held if it.offset < self._released + cut < end]
        cut = min([cut, *(begin - self._released for begin in parted)])
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return self._release(text, finish)

    def _keep(self, token: int, content: bytes, logprob: Logprob | None) -> None:
        if content and not 0x80 <= content[0] < 0xC0:  # it goes on with no character that is open
            self._pending += self._decoder.decode(b"", final=True)
        begin = self._released + len(self._pending)
        self._pending += self._decoder.decode(content)
        self._ids.append(token)
        if logprob is not None:
            end = self._released + len(self._pending)
            self._held.append((end, Token(self._tokens.label(token), begin, logprob)))

    def _beginning_of_stop(self) -> int:
        """Return how many of the last characters may be the beginning of a stop string."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._pending))
        return next(
            (
                length
                for length in range(longest, 0, -1)
                if any(stop.startswith(self._pending[-length:]) for stop in self._stop)
            ),
            0,
        )

    def _release(self, text: str, finish: Finish | None) -> Piece:
        self._released += len(text)
        ready = [token for end, token in self._held if finish or end <= self._released]
        self._held = self._held[len(ready) :]
        return Piece(text, ready, finish)


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
        self._writer = Writer(tokens, options.stop, end_of_text, after)
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
        return self._writer.add_prompt(self.prompt, logprobs, last=self.ended)

    def add(self, token: int, logprob: Logprob | None) -> Piece:
        """Take the next token; return what has become final."""
        self.new.append(token)
        piece = self._writer.add(token, logprob, last=len(self.new) == self.max_tokens)
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
