"""Prompts -> samples, in batches of like length, or a piece of text at a time."""

import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_lightning.data.prompts import encode_prompt
from gpt2_lightning.data.token_text import TextAssembler, TokenBytes
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.decoding import check_room, continue_rows, forgotten, search_beams
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.storage import disk_message, write_text

SUFFIXES = (".txt", ".jsonl")  # of files of samples

BATCH_SIZE = 32  # samples at a time


@dataclass(frozen=True)
class Sample:
    """What a model wrote.

    Attributes:
        prompt: What it continued.
        seed: Its seed; None where nothing was drawn at random.
        text: What it wrote, up to a stop string.
        ended: Whether it ended by itself, by the end-of-text or at a stop string.
        forgotten: Tokens at the beginning of prompt and text that the model no longer saw at the
            end.
    """

    prompt: str
    seed: int | None
    text: str
    ended: bool
    forgotten: int = 0

    def __str__(self) -> str:
        """Return the sample as it is shown: a line with the seed, the prompt with its text."""
        how = "without sampling" if self.seed is None else f"seed {self.seed}"
        return f"--- {how}\n{self.prompt}{self.text}\n"


def sample_file(name: str, *, flag: str) -> Path:
    """Return the file of a name, when samples can be written there.

    Args:
        name: A file that ends with .txt or .jsonl.
        flag: What named it, for messages.

    Raises:
        UsageError: If its form is unknown or its folder is missing.
    """
    file = Path(name).expanduser()
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{flag} {name}: its name has to end with .txt or .jsonl.")
    if file.is_dir():
        raise UsageError(f"{flag} {name}: it is a folder. Give a file in it.")
    parent = file.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{flag} {name}: the folder {parent} is missing or cannot be written.")
    return file


def write_samples(samples: Sequence[Sample], file: Path) -> None:
    """Write samples whole or not at all: .jsonl a row each, .txt as they are shown.

    Raises:
        UsageError: If the disk refuses.
    """
    if file.suffix == ".jsonl":
        names = ("prompt", "seed", "text", "ended")
        rows = [{name: getattr(sample, name) for name in names} for sample in samples]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = "\n".join(map(str, samples))
    try:
        write_text(file, text)
    except OSError as error:
        raise UsageError(str(disk_message(error, file))) from error


class _Row(NamedTuple):
    """A prompt that is continued with a seed."""

    prompt: str
    ids: Tensor
    seed: int


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    options: SamplingOptions,
    *,
    batch_size: int = BATCH_SIZE,
    roll: bool = False,
    max_length: int | None = None,
    advance: Callable[[int, int], None] = lambda tokens, total: None,
) -> list[Sample]:
    """Continue prompts, those of like length together.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        prompts: The texts to continue.
        options: How to draw.
        batch_size: Samples at a time.
        roll: Go on past the model's positions, with the last half of what it has seen.
        max_length: Tokens of prompt and text together at most, in the place of the options'
            ``max_new_tokens``. Each prompt counts by itself, whatever stands beside it.
        advance: Told by how many tokens the work has moved on, and how many it has at most.

    Returns:
        The samples of each prompt, in the prompts' order.

    Raises:
        UsageError: If an option is out of its range, or a text exceeds the model's positions and
            may not roll.
    """
    options.check()
    if max_length is not None:
        return _drawn_by_length(
            model, tokenizer, prompts, options, batch_size, roll, max_length, advance
        )
    encoded = [_encoded(model, tokenizer, prompt) for prompt in prompts]
    if encoded and not (roll and options.num_beams == 1):
        check_room(model, max(map(len, encoded)), options)
    seeds = options.seeds if options.num_beams == 1 else [options.seed]
    rows = [
        _Row(prompt, ids, seed)
        for prompt, ids in zip(prompts, encoded, strict=True)
        for seed in seeds
    ]
    # the longest first: what does not fit into memory is known at once
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    size = max(1, batch_size // options.num_beams)
    total = len(rows) * options.max_new_tokens
    drawn: list[list[Sample]] = [[] for _ in rows]
    for start in range(0, len(rows), size):
        numbers = order[start : start + size]
        batch = [rows[number] for number in numbers]
        new = _continued(model, tokenizer, batch, options, lambda tokens: advance(tokens, total))
        for number, continuations in zip(numbers, new, strict=True):
            drawn[number] = [
                _sample(model, tokenizer, rows[number], options, ids) for ids in continuations
            ]
    return [sample for samples in drawn for sample in samples]


def _drawn_by_length(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    options: SamplingOptions,
    batch_size: int,
    roll: bool,
    max_length: int,
    advance: Callable[[int, int], None],
) -> list[Sample]:
    """Draw from prompts of as many tokens together, since they have as many new ones."""
    tokens = [len(_encoded(model, tokenizer, prompt)) for prompt in prompts]
    options_of = {count: with_max_length(options, max_length, count) for count in set(tokens)}
    total = sum(options_of[count].max_new_tokens for count in tokens) * options.samples_per_prompt
    drawn: dict[int, list[Sample]] = {}
    for count, its_options in options_of.items():
        numbers = [number for number, of_it in enumerate(tokens) if of_it == count]
        samples = draw(
            model,
            tokenizer,
            [prompts[number] for number in numbers],
            its_options,
            batch_size=batch_size,
            roll=roll,
            advance=lambda moved, _: advance(moved, total),
        )
        each = len(samples) // len(numbers)
        for place, number in enumerate(numbers):
            drawn[number] = samples[place * each : (place + 1) * each]
    return [sample for number in range(len(prompts)) for sample in drawn[number]]


def with_max_length(options: SamplingOptions, max_length: int, tokens: int) -> SamplingOptions:
    """Return options for a text of so many tokens at most, its prompt included.

    Args:
        options: How to draw.
        max_length: Tokens of prompt and text together at most.
        tokens: Of the prompt.

    Raises:
        UsageError: If the prompt leaves no room for a token, or too little for ``min_new_tokens``.
    """
    if tokens >= max_length:
        raise UsageError(
            f"--max_length {max_length}: the prompt alone has {tokens:,} tokens, which count. Give "
            "a greater one, or say how many new tokens there may be: --max_new_tokens."
        )
    found = replace(options, max_new_tokens=max_length - tokens)
    found.check()
    return found


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    options: SamplingOptions,
    *,
    roll: bool = False,
    max_length: int | None = None,
) -> Generator[str, None, Sample]:
    """Continue a prompt, a piece of text at a time.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        prompt: The text to continue.
        options: How to draw one sample.
        roll: Go on past the model's positions, with the last half of what it has seen.
        max_length: Tokens of prompt and text together at most, in the place of the options'
            ``max_new_tokens``.

    Returns:
        An iterator over pieces of whole characters, with nothing of a stop string in them; the
        sample is its value as a generator.

    Raises:
        UsageError: If an option is out of its range, or more than one sample or beams are asked
            for, or the text exceeds the model's positions and may not roll.
    """
    options.check()
    for flag, number in (
        ("num_beams", options.num_beams),
        ("num_return_sequences", options.samples_per_prompt),
    ):
        if number > 1:
            raise UsageError(
                f"--{flag} {number}: only one sample can be shown as it comes. Ask for 1, or do "
                "not stream."
            )
    row = _Row(prompt, _encoded(model, tokenizer, prompt), options.seed)
    if max_length is not None:
        options = with_max_length(options, max_length, len(row.ids))
    if not roll:
        check_room(model, len(row.ids), options)
    return _pieces(model, tokenizer, row, options)


def _encoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tensor:
    ids = encode_prompt(tokenizer, prompt)
    if (highest := int(ids.max())) >= model.config.vocab_size:
        raise UsageError(
            f"--prompt: it holds {tokenizer.convert_ids_to_tokens(highest)}, token {highest}, "
            f"which was added to the tokenizer; the model's ids end at "
            f"{model.config.vocab_size - 1}. Leave it out of the prompt."
        )
    return ids


def _pieces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: _Row,
    options: SamplingOptions,
) -> Generator[str, None, Sample]:
    text = TextAssembler(tokenizer, options.stop, after=row.ids.tolist())
    ids: list[int] = []
    with closing(
        continue_rows(
            model, [row.ids], [row.seed], options, end_of_text=int(tokenizer.eos_token_id)
        )
    ) as steps:
        for (token,) in steps:
            if token is not None:
                ids.append(token)
                if piece := text.add(token).text:
                    yield piece
            if text.stopped:
                break
    if rest := text.close():
        yield rest
    return _sample(model, tokenizer, row, options, ids)


def _continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[_Row],
    options: SamplingOptions,
    advance: Callable[[int], None],
) -> list[list[list[int]]]:
    """Return the new ids of each row: one list, or one for each beam that was asked for."""
    prompts = [row.ids for row in rows]
    end_of_text = int(tokenizer.eos_token_id)
    table = TokenBytes(tokenizer)

    def assemble(prompt: list[int]) -> TextAssembler:
        return TextAssembler(table, options.stop, after=prompt)

    steps_left = options.max_new_tokens
    if options.num_beams > 1:
        found = search_beams(model, prompts, options, end_of_text=end_of_text, assemble=assemble)
    else:
        texts = [assemble(row.ids.tolist()) for row in rows] if options.stop else []
        seeds = [row.seed for row in rows]
        found = [[[]] for _ in rows]
        for step in continue_rows(
            model, prompts, seeds, options, end_of_text=end_of_text, texts=texts
        ):
            for (ids,), token in zip(found, step, strict=True):
                if token is not None:
                    ids.append(token)
            advance(len(rows))
            steps_left -= 1
    advance(steps_left * len(rows))  # of rows that ended early
    return found


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: _Row,
    options: SamplingOptions,
    ids: list[int],
) -> Sample:
    assembler = TextAssembler(tokenizer, options.stop, after=row.ids.tolist())
    return Sample(
        prompt=row.prompt,
        seed=row.seed if options.do_sample else None,
        text=assembler.add_all(ids),
        ended=assembler.stopped or len(ids) < options.max_new_tokens,
        forgotten=forgotten(len(row.ids), len(ids), positions_of(model)),
    )
