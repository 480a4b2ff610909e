"""Draft: a sample while it is being written."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from gpt2_lightning.data.token_text import TokenBytes
from gpt2_lightning.model.processors import processors_for
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.serving.writer import Logprob, Piece, Writer


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
