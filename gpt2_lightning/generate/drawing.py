"""Prompts -> samples, in batches of similar length, or streamed piece by piece."""

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
from gpt2_lightning.storage import check_replaceable, disk_message, write_text

SUFFIXES = (".txt", ".jsonl")  # of files of samples

COLUMNS = ("prompt", "seed", "text", "ended")  # of their rows

BATCH_SIZE = 32  # samples at a time


@dataclass(frozen=True)
class Sample:
    """A generated text.

    Attributes:
        prompt: The prompt.
        seed: The seed; None without random sampling.
        text: The text after the prompt, up to a stop string.
        ended: Whether it ended with the end-of-text or at a stop string.
        forgotten: Tokens at the beginning of prompt and text that were out of the model's context
            at the end.
    """

    prompt: str
    seed: int | None
    text: str
    ended: bool
    forgotten: int = 0

    def __str__(self) -> str:
        """Return the sample as it is printed: a line with the seed, the prompt with its text."""
        how = "without sampling" if self.seed is None else f"seed {self.seed}"
        return f"--- {how}\n{self.prompt}{self.text}\n"


def sample_file(name: str, *, flag: str) -> Path:
    """Return the path of a file that samples can be written to.

    Args:
        name: Its name, with the suffix .txt or .jsonl.
        flag: The flag that named it, for messages.

    Raises:
        UsageError: If its format is unknown, its folder is missing or read-only, or it holds
            something else than samples.
    """
    file = Path(name).expanduser()
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{flag} {name}: its name must end with .txt or .jsonl.")
    if file.is_dir():
        raise UsageError(f"{flag} {name}: it is a folder. Give a file in it.")
    parent = file.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"{flag} {name}: the folder {parent} is missing or cannot be written.")
    check_replaceable(file, flag, _are_rows if file.suffix == ".jsonl" else _are_printed)
    return file


def _are_rows(text: str) -> bool:
    try:
        row = json.loads(text.partition("\n")[0])
    except ValueError:
        return False
    return isinstance(row, dict) and tuple(row) == COLUMNS


def _are_printed(text: str) -> bool:
    return text.startswith(("--- seed ", "--- without sampling\n"))


def write_samples(samples: Sequence[Sample], file: Path) -> None:
    """Write samples atomically: .jsonl with a row for each, .txt as they are printed.

    Raises:
        UsageError: If the file cannot be written.
    """
    if file.suffix == ".jsonl":
        rows = [{name: getattr(sample, name) for name in COLUMNS} for sample in samples]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = "\n".join(map(str, samples))
    try:
        write_text(file, text)
    except OSError as error:
        raise UsageError(str(disk_message(error, file))) from error


class _Row:
    """A row of a batch: a prompt and a seed, and the text generated so far."""

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

    def add(self, token: int) -> str:
        """Decode a token that was added to the sequence; return the text that has become final."""
        piece = self._assembler.add(token, last=self.sequence.ended)
        self.text += piece.text
        self.finish = piece.finish
        self.sequence.ended = piece.finish is not None
        return piece.text

    def sample(self) -> Sample:
        """Return the finished sample."""
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
    """Continue prompts, in batches of similar length.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        prompts: The texts to continue.
        options: Sampling options.
        batch_size: Samples at a time.
        roll: Continue past the model's positions, keeping the last half of the context.
        max_length: Tokens of prompt and text together at most, instead of the options'
            ``max_new_tokens``; counted for each prompt separately.
        advance: Called with the number of further tokens, and the most that there may be.

    Returns:
        The samples of each prompt, in the prompts' order.

    Raises:
        UsageError: If an option is out of its range, or a text exceeds the model's positions
            without ``roll``.
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
    # the longest first, so that a lack of memory shows at once
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
    """Continue rows until all have ended; yield the number of tokens of each step."""
    row_of = {row.sequence: row for row in rows}
    for drawn in decode(model, list(row_of)):
        for sequence, token in zip(drawn.sequences, drawn.tokens, strict=True):
            row_of[sequence].add(token)
        yield len(drawn.tokens)


def _beams(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[_Row]
) -> dict[_Row, list[Sample]]:
    """Search the likeliest texts after each row's prompt, in batches of equal length limits."""
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
    """Continue a prompt, and stream the text.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        prompt: The text to continue.
        options: Sampling options of one sample.
        roll: Continue past the model's positions, keeping the last half of the context.
        max_length: Tokens of prompt and text together at most, instead of the options'
            ``max_new_tokens``.

    Returns:
        A generator of pieces of text, in whole characters and without stop strings; its return
        value is the sample.

    Raises:
        UsageError: If an option is out of its range, or requests several samples or beams, or the
            text exceeds the model's positions without ``roll``.
    """
    options.check()
    for flag, number in (
        ("num_beams", options.num_beams),
        ("num_return_sequences", options.samples_per_prompt),
    ):
        if number > 1:
            raise UsageError(
                f"--{flag} {number}: only one sample can be streamed. Give 1, or do not stream."
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
            if text := row.add(drawn.tokens[0]):
                yield text
    return row.sample()


def with_max_length(options: SamplingOptions, max_length: int, tokens: int) -> SamplingOptions:
    """Return options whose ``max_new_tokens`` follows from a length that includes the prompt.

    Args:
        options: Sampling options.
        max_length: Tokens of prompt and text together at most.
        tokens: Tokens of the prompt.

    Raises:
        UsageError: If this leaves no new token, or fewer than ``min_new_tokens``.
    """
    if tokens >= max_length:
        raise UsageError(
            f"--max_length {max_length}: it counts the prompt, which has {tokens:,} tokens. Give a "
            "greater one, or the number of new tokens: --max_new_tokens."
        )
    found = replace(options, max_new_tokens=max_length - tokens)
    found.check()
    return found


def _encoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    ids: list[int] = encode_prompt(tokenizer, prompt).tolist()
    if (highest := max(ids)) >= model.config.vocab_size:
        raise UsageError(
            f"--prompt: it contains {tokenizer.convert_ids_to_tokens(highest)}, token {highest}, "
            f"which was added to the tokenizer; the model's last id is "
            f"{model.config.vocab_size - 1}. Leave it out of the prompt."
        )
    return ids
