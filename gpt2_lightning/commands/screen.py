"""What of samples comes onto the screen: text as it comes, what was forgotten, a bar."""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2_lightning.inference.sample import Sample
from gpt2_lightning.inference.text_model import TextModel
from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.model.decoding import kept_of

TOLD = 5  # prompts of which it is said what the model no longer saw


def show(prompt: str, pieces: Generator[str, None, Sample], written: list[str]) -> Sample:
    """Print a prompt and its continuation as it comes.

    Args:
        prompt: The prompt.
        pieces: Its continuation.
        written: Takes the pieces, so that they are there if the user stops.
    """
    print(prompt, end="", flush=True)
    with closing(pieces):
        while True:
            try:
                written.append(next(pieces))
            except StopIteration as end:
                print(flush=True)
                sample: Sample = end.value
                return sample
            print(written[-1], end="", flush=True)


def tell_forgotten(loaded: TextModel, samples: Sequence[Sample]) -> None:
    """Say on standard error which beginnings the model no longer saw at the end of its texts."""
    most: dict[str, int] = {}
    for sample in samples:
        if sample.forgotten:
            most[sample.prompt] = max(sample.forgotten, most.get(sample.prompt, 0))
    if not most:
        return
    room = positions_of(loaded.model)
    print(
        f"The model has {room:,} positions. Each time they were full, it went on with the last "
        f"{kept_of(room):,} tokens alone. No longer seen at the end:",
        file=sys.stderr,
    )
    for prompt, tokens in list(most.items())[:TOLD]:
        print(f'  the first {tokens:,} tokens from "{_beginning(prompt)}" on', file=sys.stderr)
    if len(most) > TOLD:
        print(f"  and beginnings of {len(most) - TOLD} prompts more", file=sys.stderr)


def _beginning(prompt: str, characters: int = 40) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= characters else line[:characters] + " ..."


@contextmanager
def progress(*, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, if that is a terminal.

    Yields:
        What to tell by how many tokens the work has moved on, and how many it has at most.
    """
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = not (enabled and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("Writing", total=None)

        def advance(tokens: int, total: int) -> None:
            bar.update(task, advance=tokens, total=total)

        yield advance
