"""Prompts -> tokens: logits to scores, a step at a time, in one batch; beams."""

import math
from collections.abc import Callable, Generator, Sequence
from typing import Protocol, cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.sampling import SamplingOptions


class RowNoise(LogitsProcessor):
    """Adds Gumbel noise, each row from its own generator: the largest score is then a draw.

    A row's text depends on its seed alone, whatever else is in the batch.

    Reference: Maddison et al., "A* Sampling", https://arxiv.org/abs/1411.0030, section 2.

    Args:
        seeds: One for every row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores with noise, both of shape ``(rows, vocabulary)``."""
        return scores.float() - torch.stack(self.draw(scores.shape[-1])).log().to(scores.device)

    def draw(self, vocabulary: int) -> list[Tensor]:
        """Draw from the exponential distribution for every row, ``(vocabulary,)`` each."""
        # on the CPU, so that a seed means the same on every device
        return [torch.empty(vocabulary).exponential_(generator=g) for g in self.generators]


class Shortlist(LogitsProcessor):
    """Top-k, after which only its k scores go on: warpers would sort the whole vocabulary.

    It changes no draw: what top-k leaves out has no chance, and the noise is drawn for all.

    Args:
        top_k: The scores that go on; as transformers has it, equals of the last go on, too.
        warpers: What they go through.
        noise: What is added in the end.
    """

    def __init__(self, top_k: int, warpers: LogitsProcessorList, noise: RowNoise) -> None:
        self.top_k = TopKLogitsWarper(top_k)
        self.warpers = warpers
        self.noise = noise

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores with noise, both of shape ``(rows, vocabulary)``."""
        left = self.top_k(input_ids, scores)
        count = int((left > -math.inf).sum(-1).max())
        values, places = left.float().topk(count)
        values = self.warpers(cast(LongTensor, input_ids), cast(FloatTensor, values))
        drawn = self.noise.draw(scores.shape[-1])
        noise = torch.stack([row[at] for row, at in zip(drawn, places.cpu(), strict=True)]).log()
        none = torch.full_like(scores, -math.inf, dtype=torch.float)
        return none.scatter(-1, places, values - noise.to(scores.device))


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


def processors_for(
    options: SamplingOptions,
    seeds: Sequence[int],
    *,
    prompt_tokens: int,
    end_of_text: int,
    padding: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> LogitsProcessorList:
    """Return what turns logits into scores, the largest of which is the next token.

    They are called once for every token, with the ids so far, ``(rows, tokens)``, and the logits in
    fp32, ``(rows, vocabulary)``. The noise has a state: rows have to stay in their order, and a
    row that goes on elsewhere takes its processors along.

    Args:
        options: How to draw.
        seeds: One for every row; unused without sampling.
        prompt_tokens: Columns of the prompts, padding included.
        end_of_text: Id at which a sample ends by itself.
        padding: Columns of padding on the left of every row; null for none.
        device: Where the logits are.
    """
    before: list[LogitsProcessor] = []  # transformers' order, in `_get_logits_processor`
    if options.repetition_penalty != 1:
        before.append(RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    if options.no_repeat_ngram_size:
        before.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if padding is not None and any(padding):
        before = [WithoutPadding(processor, padding) for processor in before]
    if options.min_new_tokens:
        before.append(
            MinNewTokensLengthLogitsProcessor(
                prompt_tokens, options.min_new_tokens, end_of_text, device=str(device)
            )
        )
    if not options.do_sample:
        return LogitsProcessorList(before)
    noise = RowNoise(seeds)
    if options.temperature != 1:
        before.append(TemperatureLogitsWarper(float(options.temperature)))
    warpers = LogitsProcessorList()
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(float(options.top_p)))
    if options.min_p > 0:
        warpers.append(MinPLogitsWarper(float(options.min_p)))
    if options.typical_p < 1:
        warpers.append(TypicalLogitsWarper(float(options.typical_p)))
    if options.top_k:
        return LogitsProcessorList([*before, Shortlist(options.top_k, warpers, noise)])
    return LogitsProcessorList([*before, *warpers, noise])


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


@torch.inference_mode()
def continue_rows(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    seeds: Sequence[int],
    options: SamplingOptions,
    *,
    end_of_text: int,
    texts: Sequence[Assembler] = (),
) -> Generator[list[int | None], None, None]:
    """Continue rows together, a token of each at a time.

    A loop of our own, since transformers' gives its tokens to a callback only, and cannot go on
    when the positions are full: a model that has seen as many tokens as it has positions goes on
    with the last half of them, read anew, as GPT-2's positions are absolute. Each row does so by
    its own length, so that its text depends on nothing else in the batch.

    Args:
        model: The language model; it is in eval mode until the last step, or until the iterator is
            closed.
        prompts: Ids of each row, shape ``(tokens,)``.
        seeds: One for every row.
        options: How to draw.
        end_of_text: Id at which a row ends by itself.
        texts: The new text of each row: it is given the row's tokens, and ends the row where it
            stops. None ends none.

    Yields:
        The next token of every row, or None for a row that has ended.
    """
    room = positions_of(model)
    seen = [prompt.tolist() for prompt in prompts]  # by the model, of each row
    history, mask = left_padded(seen, end_of_text, model.device)  # of the whole text
    running = [True] * len(seen)
    processors = processors_for(
        options,
        seeds,
        prompt_tokens=history.shape[-1],
        end_of_text=end_of_text,
        padding=[history.shape[-1] - len(row) for row in seen],
        device=model.device,
    )
    cache: DynamicCache | None = None
    was_training = model.training
    model.eval()
    try:
        for _ in range(options.max_new_tokens):
            if cache is None or max(map(len, seen)) > room:
                seen = [row[-kept_of(room) :] if len(row) > room else row for row in seen]
                inputs, mask = left_padded(seen, end_of_text, model.device)
                positions = (mask.cumsum(-1) - 1).clamp(min=0)
                cache = DynamicCache(config=model.config)
            else:
                inputs = history[:, -1:]
                mask = torch.cat([mask, mask.new_ones(len(seen), 1)], dim=-1)
                positions = (positions[:, -1:] + 1).clamp(max=room - 1)  # of rows that have ended
            logits = model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            drawn = processors(cast(LongTensor, history), logits.float()).argmax(-1, keepdim=True)
            history = torch.cat([history, drawn], dim=-1)
            step: list[int | None] = [None] * len(seen)
            for row, token in enumerate(drawn.flatten().tolist()):
                if not running[row]:
                    continue
                if token == end_of_text:
                    running[row] = False
                    continue
                step[row] = token
                seen[row].append(token)
                if texts:
                    texts[row].add(token)
                    running[row] = not texts[row].stopped
            yield step
            if not any(running):
                return
    finally:
        model.train(was_training)


def kept_of(room: int) -> int:
    """Return how many tokens a model still sees when its positions were full."""
    return max(1, room // 2)


def forgotten(prompt_tokens: int, new_tokens: int, room: int) -> int:
    """Return how many tokens from a text's beginning the model did not see at its end.

    Args:
        prompt_tokens: Of the prompt.
        new_tokens: Drawn since.
        room: Positions of the model.
    """
    seen = prompt_tokens
    for _ in range(new_tokens):
        seen = (kept_of(room) if seen > room else seen) + 1
    return prompt_tokens + new_tokens - seen


def left_padded(rows: list[list[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, ``(rows, tokens)``, so that all rows go on from the same column."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.tensor(row)
        mask[number, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


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
    check_room(model, max(len(prompt) for prompt in prompts), options)
    if options.stop and assemble is None:
        raise ValueError("stop strings need assemble=")
    copies = options.samples_per_prompt
    if options.num_beams > 1:
        return search_beams(model, prompts, options, end_of_text=end_of_text, assemble=assemble)
    rows = [prompt for prompt in prompts for _ in range(copies)]
    new: list[list[int]] = [[] for _ in rows]
    steps = continue_rows(
        model,
        rows,
        options.seeds * len(prompts),
        options,
        end_of_text=end_of_text,
        texts=[assemble(row.tolist()) for row in rows] if options.stop and assemble else (),
    )
    for step in steps:
        for row, token in enumerate(step):
            if token is not None:
                new[row].append(token)
    return [new[start : start + copies] for start in range(0, len(new), copies)]


def check_room(model: PreTrainedModel, longest: int, options: SamplingOptions) -> None:
    """See that a prompt of so many tokens and its continuation fit into the model's positions.

    Raises:
        UsageError: If they do not.
    """
    room = positions_of(model)
    if longest + options.max_new_tokens > room:
        raise UsageError(
            f"--max_new_tokens {options.max_new_tokens}: with a prompt of {longest} tokens this "
            f"exceeds the model's {room} positions. "
            + (
                f"--max_new_tokens {room - longest} would work."
                if longest < room
                else f"Shorten the prompt to less than {room} tokens."
            )
        )


class _StopStrings(StoppingCriteria):
    """Ends a beam at a stop string of its new text.

    transformers' own criterion takes the prompt for text of the model's.

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
    ids, mask = left_padded([prompt.tolist() for prompt in prompts], end_of_text, model.device)
    longest = ids.shape[-1]
    processors = processors_for(
        options,
        [],
        prompt_tokens=longest,
        end_of_text=end_of_text,
        padding=[longest - len(prompt) for prompt in prompts for _ in range(options.num_beams)],
        device=model.device,
    )
    was_training, own_settings = model.training, model.generation_config
    model.eval()
    # what is not asked for would be filled in from the model's own: a repetition penalty, say
    model.generation_config = GenerationConfig()
    copies = options.samples_per_prompt
    criteria = StoppingCriteriaList()
    if options.stop and assemble is not None:
        criteria.append(_StopStrings([prompt.tolist() for prompt in prompts], longest, assemble))
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
    new = [_until(row, end_of_text) for row in output[:, longest:].tolist()]
    return [new[start : start + copies] for start in range(0, len(new), copies)]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
