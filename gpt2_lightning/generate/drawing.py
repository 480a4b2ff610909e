"""Prompts -> samples, in batches of like length, or a piece of text at a time."""

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_lightning.data.prompts import encode_prompt
from gpt2_lightning.data.token_text import Finish, TextAssembler, TokenBytes
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.decoding import check_length, decode, search_beams
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.model.sequence import TokenSequence
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


class _Row:
    """A prompt that is continued with a seed, and the text after it so far."""

    def __init__(
        self,
        prompt: str,
        ids: list[int],
        options: SamplingOptions,
        seed: int,
        tokenizer: PreTrainedTokenizerBase,
        tokens: TokenBytes,
    ) -> None:
        end_of_text = int(tokenizer.eos_token_id)
        self.prompt = prompt
        self.seed = seed if options.do_sample else None
        self.sequence = TokenSequence(ids, options, seed, end_of_text=end_of_text)
        self.text = ""
        self.finish: Finish | None = None
        self._assembler = TextAssembler(tokens, options.stop, end_of_text, after=ids)

    def take(self, token: int) -> str:
        """Take a token that was added to the sequence; return the text that has become final."""
        piece = self._assembler.add(token, last=self.sequence.ended)
        self.text += piece.text
        self.finish = piece.finish
        self.sequence.ended = piece.finish is not None
        return piece.text

    def sample(self) -> Sample:
        """Return what has come of it."""
        ended = self.finish == "stop"
        return Sample(self.prompt, self.seed, self.text, ended, self.sequence.forgotten)


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
    with_beams, table = options.num_beams > 1, TokenBytes(tokenizer)
    rows = []
    for prompt in prompts:
        ids, own = _encoded(model, tokenizer, prompt), options
        if max_length is not None:
            own = with_max_length(options, max_length, len(ids))
        for seed in [options.seed] if with_beams else options.seeds:
            rows.append(_Row(prompt, ids, own, seed, tokenizer, table))
    # the longest first: what does not fit into memory is known at once
    order = sorted(rows, key=lambda row: -len(row.sequence.prompt))
    if with_beams or not roll:
        for row in order:
            check_length(model, len(row.sequence.prompt), row.sequence.options)
    total = sum(row.sequence.options.max_new_tokens for row in rows)
    drawn: dict[_Row, list[Sample]] = {}
    size = max(1, batch_size // options.num_beams)
    for start in range(0, len(rows), size):
        batch = order[start : start + size]
        if with_beams:
            drawn |= _beams(model, tokenizer, batch)
        else:
            for moved in _continue(model, batch):
                advance(moved, total)
            drawn |= {row: [row.sample()] for row in batch}
        most = sum(row.sequence.options.max_new_tokens for row in batch)
        advance(most - sum(len(row.sequence.new) for row in batch), total)  # of what ended early
    return [sample for row in rows for sample in drawn[row]]


def _continue(model: PreTrainedModel, rows: Sequence[_Row]) -> Iterator[int]:
    """Continue rows until all have ended; yield how many tokens each step has written."""
    row_of = {row.sequence: row for row in rows}
    for drawn in decode(model, list(row_of)):
        for sequence, token in zip(drawn.sequences, drawn.tokens, strict=True):
            row_of[sequence].take(token)
        yield len(drawn.tokens)


def _beams(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[_Row]
) -> dict[_Row, list[Sample]]:
    """Return the likeliest texts after each row's prompt; those of as many tokens together."""
    found: dict[_Row, list[Sample]] = {}
    for _, some in groupby(rows, key=lambda row: row.sequence.options.max_new_tokens):
        alike = list(some)
        options = alike[0].sequence.options

        def assemble(prompt: list[int], stop: Sequence[str] = tuple(options.stop)) -> TextAssembler:
            return TextAssembler(tokenizer, stop, after=prompt)

        new = search_beams(
            model,
            [torch.tensor(row.sequence.prompt) for row in alike],
            options,
            end_of_text=int(tokenizer.eos_token_id),
            assemble=assemble,
        )
        for row, texts in zip(alike, new, strict=True):
            found[row] = []
            for ids in texts:
                assembler = assemble(row.sequence.prompt)
                text = assembler.add_all(ids)
                ended = assembler.stopped or len(ids) < options.max_new_tokens
                found[row].append(Sample(row.prompt, None, text, ended))
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
    ids = _encoded(model, tokenizer, prompt)
    if max_length is not None:
        options = with_max_length(options, max_length, len(ids))
    if not roll:
        check_length(model, len(ids), options)
    return _pieces(
        model, _Row(prompt, ids, options, options.seed, tokenizer, TokenBytes(tokenizer))
    )


def _pieces(model: PreTrainedModel, row: _Row) -> Generator[str, None, Sample]:
    with closing(decode(model, [row.sequence])) as steps:
        for drawn in steps:
            if text := row.take(drawn.tokens[0]):
                yield text
    return row.sample()


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


def _encoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    ids: list[int] = encode_prompt(tokenizer, prompt).tolist()
    if (highest := max(ids)) >= model.config.vocab_size:
        raise UsageError(
            f"--prompt: it holds {tokenizer.convert_ids_to_tokens(highest)}, token {highest}, "
            f"which was added to the tokenizer; the model's ids end at "
            f"{model.config.vocab_size - 1}. Leave it out of the prompt."
        )
    return ids
