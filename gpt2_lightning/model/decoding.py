"""Prompts -> tokens: one loop, over a batch of sequences that may join and leave; drawing; beams.

A loop of our own, since transformers' `generate` cannot be paused between two tokens, nor seed a
row, nor go on when the positions are full. The server is a thread and a queue over the same batch.
"""

from collections.abc import Callable, Generator, Sequence
from inspect import signature
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.model.sequence import TokenSequence, draw, look_back

SPARE_COLUMNS = 64  # of a batch's cache, which is so moved to its beginning rarely


class Drawn(NamedTuple):
    """The next token of some sequences.

    Attributes:
        sequences: The sequences; a token is not yet theirs.
        tokens: The next of each.
        logits: The model's own, which they were drawn from, shape ``(sequences, vocabulary)``.
    """

    sequences: list[TokenSequence]
    tokens: list[int]
    logits: Tensor


class Batch:
    """Sequences that are continued together, a token of each at a time, over one cache.

    The last tokens of all stand in the same column of the cache: sequences of any length go on
    together, and whatever a model does by the distance of two tokens is right. Sequences join and
    leave between two steps; where one leaves, the last row takes its place. A sequence that has
    filled the model's positions goes on with the last half of them, read anew, as GPT-2's positions
    are absolute. All memory is taken when the first sequence joins; it does not grow.

    Args:
        model: A causal language model in eval mode; nobody else may use it meanwhile.
        rows: Sequences at most.
        columns: Tokens of a sequence at most; null is the model's positions.
    """

    def __init__(self, model: PreTrainedModel, rows: int, columns: int | None = None) -> None:
        self.model = model
        self.positions = positions_of(model)
        self.rows = rows
        self.columns = min(columns or self.positions, self.positions) + SPARE_COLUMNS
        self.sequences: list[TokenSequence] = []  # of each row in use
        self.lengths: list[int] = []  # columns of each that are filled
        self.end = 0  # the column of the next tokens
        self.cache: Cache | None = None
        # transformers renamed it after 5.20, and warns of the old name
        known = signature(model.base_model.forward).parameters
        self.cache_parameter = "cache" if "cache" in known else "past_key_values"

    @property
    def begin(self) -> int:
        """The first column that is filled."""
        return self.end - max(self.lengths, default=0)

    @property
    def bytes(self) -> int:
        """Memory of the cache."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def join(
        self,
        sequences: Sequence[TokenSequence],
        on_read: Callable[[TokenSequence, Tensor], None] | None = None,
    ) -> Drawn:
        """Read sequences, in one pass, and draw the next token of each that has not ended.

        Args:
            sequences: Those that join; equal texts are read once.
            on_read: Told each sequence's last hidden states, shape ``(tokens, width)``.
        """
        for sequence in sequences:
            if len(sequence.ids) - sequence.forgotten > self.positions:
                sequence.forgotten = len(sequence.ids) - window_after_overflow(self.positions)
        texts = [tuple(it.ids[it.forgotten :]) for it in sequences]
        read = list(dict.fromkeys(texts))
        ids, mask = left_padded(read, self.model.device)
        cache = DynamicCache(config=self.model.config)
        hidden = self._hidden(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        lines = [read.index(text) for text in texts]
        if on_read is not None:
            for sequence, line, text in zip(sequences, lines, texts, strict=True):
                on_read(sequence, hidden[line, -len(text) :])
        going = [row for row, sequence in enumerate(sequences) if not sequence.ended]
        self._put(
            [sequences[row] for row in going],
            cache,
            [lines[row] for row in going],
            [len(texts[row]) for row in going],
        )
        return self._draw([sequences[row] for row in going], hidden[[lines[row] for row in going]])

    def step(self) -> Drawn:
        """Draw one more token of every sequence, which was given its last one."""
        full = [
            sequence
            for sequence, length in zip(self.sequences, self.lengths, strict=True)
            if length == self.positions
        ]
        if not full:
            return self._step()
        self.leave(full)
        if not self.sequences:
            return self.join(full)
        going, again = self._step(), self.join(full)
        return Drawn(
            going.sequences + again.sequences,
            going.tokens + again.tokens,
            torch.cat([going.logits, again.logits]),
        )

    def leave(self, sequences: Sequence[TokenSequence]) -> None:
        """Free the rows of sequences."""
        leaving = set(sequences)
        for row in reversed(range(len(self.sequences))):
            if self.sequences[row] in leaving:
                last, length = self.sequences.pop(), self.lengths.pop()
                if row < len(self.sequences):
                    self.sequences[row], self.lengths[row] = last, length
                    columns = slice(self.end - length, self.end)
                    for tensor in self._tensors():
                        tensor[row, :, columns] = tensor[len(self.sequences), :, columns]

    def _step(self) -> Drawn:
        if self.end == self.columns:
            self._move(max(self.lengths))
        assert self.cache is not None
        for layer in cast(list[BatchLayer], self.cache.layers):
            layer.rows, layer.begin, layer.end = len(self.sequences), self.begin, self.end
        device = self.model.device
        ids = torch.tensor([[sequence.new[-1]] for sequence in self.sequences], device=device)
        positions = torch.tensor(self.lengths, device=device)[:, None]
        mask = torch.arange(self.begin, self.end + 1, device=device) >= self.end - positions
        hidden = self._hidden(ids, mask, positions, self.cache)
        self.lengths = [length + 1 for length in self.lengths]
        self.end += 1
        return self._draw(list(self.sequences), hidden)

    def _hidden(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        output = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self.cache_parameter: cache},
        )
        return cast(Tensor, output.last_hidden_state)

    def _draw(self, sequences: list[TokenSequence], hidden: Tensor) -> Drawn:
        logits = self.model.get_output_embeddings()(hidden[:, -1])
        return Drawn(sequences, draw(sequences, logits) if sequences else [], logits)

    def _put(
        self,
        sequences: list[TokenSequence],
        read: DynamicCache,
        lines: list[int],
        lengths: list[int],
    ) -> None:
        """Copy what was read, in these lines and so many columns, to the next free rows."""
        longest = max([*self.lengths, *lengths], default=0)
        if not self.sequences or self.end < longest:
            self._move(longest)
        if self.cache is None:
            filled = [it for it in read.layers if isinstance(it, DynamicLayer)]
            if len(filled) < len(read.layers):
                raise UsageError(
                    f"--model: a model of type {self.model.config.model_type} keeps more than keys "
                    "and values of its tokens. Only GPT-2-like models are supported."
                )
            layers = [BatchLayer(it, self.rows, self.columns) for it in filled]
            self.cache = Cache(layers=[*layers])
        for tensor, text in zip(self._tensors(), _tensors_of(read), strict=True):
            for row, (line, length) in enumerate(
                zip(lines, lengths, strict=True), len(self.lengths)
            ):
                count = min(length, text.shape[2])  # a sliding window is shorter than a text
                tensor[row, :, self.end - count : self.end] = text[line, :, -count:]
        self.sequences += sequences
        self.lengths += lengths

    def _move(self, end: int) -> None:
        """Move the columns that are filled, so that the next one is this."""
        rows, count = len(self.sequences), self.end - self.begin
        for tensor in self._tensors():
            filled = tensor[:rows, :, self.begin : self.end].clone()
            tensor[:rows, :, end - count : end] = filled
        self.end = end

    def _tensors(self) -> list[Tensor]:
        return [] if self.cache is None else _tensors_of(self.cache)


class BatchLayer(CacheLayerMixin):
    """One layer of a batch's cache, as transformers' models use it: a step writes one column.

    Args:
        like: The same layer of a cache that was just filled.
        rows: Sequences at most.
        columns: Columns of each.
    """

    def __init__(self, like: DynamicLayer, rows: int, columns: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # it has no annotations

        def room_for(filled: Tensor | None) -> Tensor:
            _, heads, _, width = cast(Tensor, filled).shape
            # zeros: masked columns count nothing, but nothing times NaN is NaN
            return cast(Tensor, filled).new_zeros(rows, heads, columns, width)

        self.keys, self.values = room_for(like.keys), room_for(like.values)
        self.is_initialized = True
        self.is_sliding = like.is_sliding
        self.rows = self.begin = self.end = 0  # in use; `end` is where the next tokens go

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values; return those of all columns in use."""
        keys, values = cast(Tensor, self.keys)[: self.rows], cast(Tensor, self.values)[: self.rows]
        keys[:, :, self.end] = key_states[:, :, 0]
        values[:, :, self.end] = value_states[:, :, 0]
        columns = slice(self.begin, self.end + 1)
        return keys[:, :, columns], values[:, :, columns]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the memory is there from the beginning."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the columns that attention sees, and the first of them."""
        return self.end - self.begin + query_length, 0

    def get_seq_length(self) -> int:
        """Return the columns that are filled."""
        return self.end - self.begin

    def get_max_length(self) -> int:
        """Return the columns there are."""
        return int(cast(Tensor, self.keys).shape[2])


def _tensors_of(cache: Cache) -> list[Tensor]:
    layers = cast(list[CacheLayerMixin], cache.layers)
    return [cast(Tensor, it) for layer in layers for it in (layer.keys, layer.values)]


@torch.inference_mode()
def decode(
    model: PreTrainedModel, sequences: Sequence[TokenSequence]
) -> Generator[Drawn, None, None]:
    """Continue sequences together until each has ended.

    Args:
        model: The language model; it is in eval mode until the last step, or until the generator is
            closed.
        sequences: Those to continue.

    Yields:
        The next token of every sequence that has not ended, which is already added to it. Whoever
        sees a stop string sets ``ended``.
    """
    longest = max(len(it.prompt) + it.options.max_new_tokens for it in sequences)
    batch = Batch(model, len(sequences), longest)
    was_training = model.training
    model.eval()
    try:
        drawn = batch.join(sequences)
        while True:
            for sequence, token in zip(drawn.sequences, drawn.tokens, strict=True):
                sequence.add(token)
            yield drawn
            batch.leave([sequence for sequence in batch.sequences if sequence.ended])
            if not batch.sequences:
                return
            drawn = batch.step()
    finally:
        model.train(was_training)


class Assembler(Protocol):
    """Puts a text together from its tokens; knows when a stop string is complete.

    `data.token_text.TextAssembler` does, whose folder this one does not import.
    """

    stopped: bool

    def add(self, token: int) -> object:
        """Take the next token."""
        ...


# The ids of a prompt -> the text after it.
Assemble = Callable[[list[int]], Assembler]


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    options: SamplingOptions,
    *,
    end_of_text: int,
    assemble: Assemble | None = None,
) -> list[list[list[int]]]:
    """Continue prompts, all in one batch.

    Args:
        model: The language model; it is in eval mode while this runs.
        prompts: Ids of each prompt, shape ``(tokens,)``.
        options: How to draw.
        end_of_text: Id at which a sample ends by itself.
        assemble: What puts a sample's text together, from the ids of its prompt; stop strings need
            it.

    Returns:
        For each prompt, for each of its samples, the new ids, without the end-of-text. The last one
        completes a stop string where a sample ended so.

    Raises:
        UsageError: If a prompt and its continuation exceed the model's positions.
    """
    check_length(model, max(len(prompt) for prompt in prompts), options)
    if options.stop and assemble is None:
        raise ValueError("stop strings need assemble=")
    if options.num_beams > 1:
        return search_beams(model, prompts, options, end_of_text=end_of_text, assemble=assemble)
    samples = [
        [
            TokenSequence(prompt.tolist(), options, seed, end_of_text=end_of_text)
            for seed in options.seeds
        ]
        for prompt in prompts
    ]
    every = [sequence for some in samples for sequence in some]
    texts = {it: assemble(it.prompt) for it in every} if options.stop and assemble else {}
    for drawn in decode(model, every):
        if texts:
            for sequence, token in zip(drawn.sequences, drawn.tokens, strict=True):
                texts[sequence].add(token)
                sequence.ended |= texts[sequence].stopped
    return [[sequence.text_ids for sequence in some] for some in samples]


def check_length(model: PreTrainedModel, prompt_tokens: int, options: SamplingOptions) -> None:
    """See that a prompt of so many tokens and its continuation fit into the model's positions.

    Raises:
        UsageError: If they do not.
    """
    most = positions_of(model)
    if prompt_tokens + options.max_new_tokens > most:
        raise UsageError(
            f"--max_new_tokens {options.max_new_tokens}: with a prompt of {prompt_tokens} tokens "
            f"this exceeds the model's {most} positions. "
            + (
                f"--max_new_tokens {most - prompt_tokens} would work."
                if prompt_tokens < most
                else f"Shorten the prompt to less than {most} tokens."
            )
        )


def window_after_overflow(max_positions: int) -> int:
    """Return how many tokens a model still sees when its positions were full."""
    return max(1, max_positions // 2)


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, ``(rows, tokens)``, so that all rows go on from the same column."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


@torch.inference_mode()
def search_beams(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    options: SamplingOptions,
    *,
    end_of_text: int,
    assemble: Assemble | None,
) -> list[list[list[int]]]:
    """Do what `generate` does by transformers' beam search, for the likeliest texts as a whole."""
    ids, mask = left_padded([prompt.tolist() for prompt in prompts], model.device)
    longest, copies = ids.shape[-1], options.samples_per_prompt
    padding = [longest - len(prompt) for prompt in prompts for _ in range(options.num_beams)]
    processors = LogitsProcessorList(WithoutPadding(it, padding) for it in look_back(options))
    if options.min_new_tokens:
        processors.append(
            MinNewTokensLengthLogitsProcessor(
                longest, options.min_new_tokens, end_of_text, device=str(model.device)
            )
        )
    criteria = StoppingCriteriaList()
    if options.stop and assemble is not None:
        criteria.append(StopStrings([prompt.tolist() for prompt in prompts], longest, assemble))
    was_training, own_settings = model.training, model.generation_config
    model.eval()
    # what is not asked for would be filled in from the model's own: a repetition penalty, say
    model.generation_config = GenerationConfig()
    try:
        output = cast(GenerationMixin, model).generate(
            ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                num_beams=options.num_beams,
                num_return_sequences=copies,
                eos_token_id=end_of_text,
                pad_token_id=end_of_text,
            ),
            logits_processor=processors,
            stopping_criteria=criteria,
        )
    finally:
        model.train(was_training)
        model.generation_config = own_settings
    new = [row[: [*row, end_of_text].index(end_of_text)] for row in output[:, longest:].tolist()]
    return [new[start : start + copies] for start in range(0, len(new), copies)]


class WithoutPadding(LogitsProcessor):
    """Shows a processor each row without the padding on its left, which it would take for text.

    Args:
        processor: One that looks at the tokens before.
        padding: Tokens of padding, for every row.
    """

    def __init__(self, processor: LogitsProcessor, padding: Sequence[int]) -> None:
        self.processor = processor
        self.padding = padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return processed scores, of shape ``(rows, vocabulary)``."""
        return torch.cat(
            [
                self.processor(input_ids[row : row + 1, padded:], scores[row : row + 1])
                for row, padded in enumerate(self.padding)
            ]
        )


class StopStrings(StoppingCriteria):
    """Ends a beam at a stop string of its new text; transformers' own reads the prompt, too.

    Args:
        prompts: Each of which has the same number of rows.
        prompt_tokens: Columns of the prompts, padding included.
        assemble: Puts a text together.
    """

    def __init__(
        self, prompts: Sequence[list[int]], prompt_tokens: int, assemble: Assemble
    ) -> None:
        self.prompts = prompts
        self.prompt_tokens = prompt_tokens
        self.assemble = assemble

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Tell for every row whether it has ended."""
        each = len(input_ids) // len(self.prompts)
        stopped = []
        for row, new in enumerate(input_ids[:, self.prompt_tokens :].tolist()):
            text = self.assemble(self.prompts[row // each])
            for token in new:
                text.add(token)
            stopped.append(text.stopped)
        return torch.tensor(stopped, device=input_ids.device)
