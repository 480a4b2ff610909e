"""Prompts to continue: read, distributed over the ranks, turned into ids."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.errors import UsageError


def read_prompts(file: str, *, flag: str = "--data.prompts") -> list[str]:
    """Read prompts: one a line of a text file, or the ``prompt`` of each line of a .jsonl file.

    Args:
        file: The file.
        flag: The flag that named it, for messages.

    Raises:
        UsageError: If the file is missing, holds no prompt, or a line of it cannot be read.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        raise UsageError(f"{flag} {file}: it is a folder. Give a file, with a prompt in each line.")
    if not path.is_file():
        raise UsageError(f"{flag} {file}: there is no such file.")
    lines = read_lines(path.read_bytes(), f"{flag} {file}")
    if not lines:
        raise UsageError(f"{flag} {file}: the file holds no prompt; write one a line.")
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return list(lines.values())
    return [_prompt_of(line, f"{flag} {file}: line {number}") for number, line in lines.items()]


def _prompt_of(line: str, name: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
        if isinstance(prompt, str):
            prompt.encode()
            return prompt
        found: Exception | None = None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        found = error
    raise UsageError(f'{name} is not of the form {{"prompt": "..."}}, in UTF-8.') from found


def read_lines(data: bytes, name: str) -> dict[int, str]:
    """Return the lines of a text that are not blank, by their numbers from 1.

    Args:
        data: The content of a file or of standard input.
        name: Its name in messages.

    Raises:
        UsageError: If it is not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name}: not UTF-8 at byte {error.start}. Convert the text first."
        ) from error
    lines = text.replace("\r\n", "\n").split("\n")
    return {number: line for number, line in enumerate(lines, 1) if line.strip()}


class PromptBatches:
    """Every prompt once, in order, distributed over the ranks.

    Args:
        prompts: The prompts.
        tokenizer: Turns them into ids.
        batch_size: Prompts in a batch of one rank.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        prompts: list[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.mine = list(enumerate(prompts))[rank::world_size]
        self.batches = -(-len(prompts) // (world_size * batch_size))
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the batches of a rank: equally many in all ranks, the last ones may be empty."""
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield ``prompts``, their ``index`` in the file from 0, and ``input_ids``, a list each."""
        for batch in range(self.batches):
            start = batch * self.batch_size
            part = self.mine[start : start + self.batch_size]
            yield {
                "index": [index for index, _ in part],
                "prompts": [prompt for _, prompt in part],
                "input_ids": [encode_prompt(self.tokenizer, prompt) for _, prompt in part],
            }


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Return a prompt's ids, shape ``(tokens,)``; an empty prompt begins with the end-of-text.

    Raises:
        UsageError: If the prompt holds bytes that are no text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"--prompt: not UTF-8 at character {error.start}. Write it in UTF-8."
        ) from error
    # the length is checked against the model, in one message of our own
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids or [tokenizer.eos_token_id])
