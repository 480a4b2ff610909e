"""What `generate` shows: text as it comes, and the conversation of --interactive."""

import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gpt2_lightning.errors import UsageError
from gpt2_lightning.generate.drawing import Sample, draw, sample_file, stream, write_samples
from gpt2_lightning.generate.text_model import TextModel
from gpt2_lightning.model.decoding import window_after_overflow
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.parser import Parser

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
    positions = positions_of(loaded.model)
    print(
        f"The model has {positions:,} positions. Each time they were full, it went on with the "
        f"last {window_after_overflow(positions):,} tokens alone. No longer seen at the end:",
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


with suppress(ImportError):  # there is none on Windows
    import readline  # noqa: F401 - its import alone gives input() arrows and a history

HELP = """\
Type a prompt and press Enter: the model continues it. Ctrl-C stops it, Ctrl-D leaves.
  /set NAME VALUE   change an option: /set temperature 0.9
  /options          show the options
  /again            continue the last prompt once more, with the next seed
  /save FILE        write all samples so far to a .txt or .jsonl file
  /help             this
  /quit             leave
A prompt that begins with a slash is written with two: //etc/hosts"""


@dataclass
class Repl:
    """Reads prompts and commands, one a line, until the end of standard input.

    Attributes:
        loaded: The model.
        options: How the next sample is drawn; one for each prompt where no number is given.
        samples: All samples so far, those that were stopped included.
        prompt: The last prompt.
    """

    loaded: TextModel
    options: SamplingOptions
    samples: list[Sample] = field(default_factory=list)
    prompt: str | None = None

    def __post_init__(self) -> None:
        self.options = replace(
            self.options, num_return_sequences=self.options.num_return_sequences or 1
        )

    def run(self) -> None:
        """Converse until the end."""
        terminal = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):  # what is no text is one line's mistake
            sys.stdin.reconfigure(errors="surrogateescape")
        if terminal:
            print("Type a prompt; /help lists the commands.")
        while True:
            try:
                line = input("> " if terminal else "")
                if not self.answer(line):
                    return
            except EOFError:
                if terminal:
                    print()
                return
            except KeyboardInterrupt:  # of the line that was being typed
                print()
            except UsageError as error:
                # there are no dashes here
                print(f"error: {re.sub(r'--(?=[a-z])', '', str(error))}", file=sys.stderr)

    def answer(self, line: str) -> bool:
        """Do what a line says; tell whether to go on.

        Raises:
            UsageError: If it cannot be done.
        """
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match command:
            case "":
                pass
            case "/quit":
                return False
            case "/help":
                print(HELP)
            case "/options":
                for option in fields(self.options):
                    print(f"  {option.name} = {getattr(self.options, option.name)!r}")
            case "/set":
                self.options = changed(self.options, rest)
            case "/again":
                if self.prompt is None:
                    raise UsageError("/again: there was no prompt yet. Type one.")
                following = replace(self.options, seed=self.options.seeds[-1] + 1)
                following.check()
                self.options = following
                self.write(self.prompt)
            case "/save":
                self.save(rest)
            case _ if command.startswith("/") and not command.startswith("//"):
                raise UsageError(f"{command}: there is no such command. /help lists them.")
            case _:
                self.prompt = re.sub(r"^(\s*)//", r"\1/", line)
                self.write(self.prompt)
        return True

    def write(self, prompt: str) -> None:
        """Continue a prompt; Ctrl-C keeps what is there."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        self.options.check()
        if self.options.num_beams > 1:  # beams are whole only at the end
            found = draw(model, tokenizer, [prompt], self.options, roll=True)
            for sample in found:
                print(sample, flush=True)
            self.samples += found
            return
        for seed in self.options.seeds:
            one = replace(self.options, num_return_sequences=1, seed=seed)
            pieces = stream(model, tokenizer, prompt, one, roll=True)
            written: list[str] = []
            print(f"--- seed {seed}" if one.do_sample else "--- without sampling")
            try:
                sample = show(prompt, pieces, written)
            except KeyboardInterrupt:
                print(" (stopped)\n")
                shown = seed if one.do_sample else None
                self.samples.append(Sample(prompt, shown, "".join(written), ended=False))
                return
            print()
            tell_forgotten(self.loaded, [sample])
            self.samples.append(sample)

    def save(self, name: str) -> None:
        """Write the samples so far."""
        if not name:
            raise UsageError("/save: where to? Write /save samples.txt, or samples.jsonl.")
        if not self.samples:
            raise UsageError("/save: there are no samples yet. Type a prompt.")
        file = sample_file(name, flag="/save")
        write_samples(self.samples, file)
        print(f"{len(self.samples)} samples: {file}")


def _is_list_of_text(value: str) -> bool:
    try:
        found = json.loads(value)
    except ValueError:
        return False
    return isinstance(found, list) and all(isinstance(it, str) for it in found)


def changed(options: SamplingOptions, words: str) -> SamplingOptions:
    """Return options with one of them changed.

    Args:
        options: As they are.
        words: A name and a value; several stop strings are a JSON list.

    Raises:
        UsageError: If there is no such option, or it cannot have this value.
    """
    name, _, value = words.partition(" ")
    value = value.strip()
    if not value:
        raise UsageError("/set: which option, and to what? Write /set temperature 0.9.")
    names = [option.name for option in fields(SamplingOptions)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {close[0]}?" if close else "/options lists them."
        raise UsageError(f"/set {name}: there is no such option. {hint}")
    if name == "stop" and not _is_list_of_text(value):
        value = json.dumps([value])
    parser = Parser(prog="/set")
    parser.add_class_arguments(SamplingOptions)
    found = parser.parse_args([f"--{name}={value}"])[name]
    result = replace(options, **{name: found})
    result.check()
    return result
