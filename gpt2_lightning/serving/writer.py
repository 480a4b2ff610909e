"""A sample's text as it comes: whole characters, and nothing that may yet be part of a stop."""

import codecs
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gpt2_lightning.data.token_text import TokenBytes

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
