"""What `generate` prints: streamed text, progress, and the dialogue of --interactive."""

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

with suppress(ImportError):  # not on Windows
    import readline  # noqa: F401 - importing it gives input() line editing and a history

MOST_FORGOTTEN = 5  # prompts that are listed as partly out of context

HELP = """\
Type a prompt and press Enter: the model continues it. Ctrl-C stops it, Ctrl-D quits.
  /set NAME VALUE   change an option: /set temperature 0.9
  /options          show the options
  /again            continue the last prompt once more, with the next seed
  /save FILE        write all samples so far to a .txt or .jsonl file
  /help             show this
  /quit             quit
A prompt that begins with a slash is written with two: //etc/hosts"""


def print_stream(prompt: str, pieces: Generator[str, None, Sample], written: list[str]) -> Sample:
    """Print a prompt and its continuation while it is generated.

    Args:
        prompt: The prompt.
        pieces: Its continuation.
        written: Receives the pieces, which are then known if the user interrupts.
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


def print_forgotten(loaded: TextModel, samples: Sequence[Sample]) -> None:
    """Print on standard error which beginnings were out of the model's context at the end."""
    most: dict[str, int] = {}
    for sample in samples:
        if sample.forgotten:
            most[sample.prompt] = max(sample.forgotten, most.get(sample.prompt, 0))
    if not most:
        return
    positions = positions_of(loaded.model)
    print(
        f"The model has {positions:,} positions. Each time they were full, it continued with the "
        f"last {window_after_overflow(positions):,} tokens only. Out of its context at the end:",
        file=sys.stderr,
    )
    for prompt, tokens in list(most.items())[:MOST_FORGOTTEN]:
        print(f'  the first {tokens:,} tokens from "{_beginning(prompt)}" on', file=sys.stderr)
    if len(most) > MOST_FORGOTTEN:
        print(f"  and of {len(most) - MOST_FORGOTTEN} more prompts", file=sys.stderr)


def _beginning(prompt: str, characters: int = 40) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= characters else line[:characters] + " ..."


@contextmanager
def progress(*, enabled: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error, if that is a terminal.

    Yields:
        A function to call with the number of further tokens, and the most that there may be.
    """
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = not (enabled and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("Generating", total=None)

        def advance(tokens: int, total: int) -> None:
            bar.update(task, advance=tokens, total=total)

        yield advance


@dataclass
class Repl:
    """Reads prompts and commands, one a line, until the end of standard input.

    Attributes:
        loaded: The model.
        options: Sampling options; by default one sample for each prompt.
        samples: All samples so far, interrupted ones included.
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
        """Read and answer lines until the end."""
        terminal = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):  # invalid UTF-8 is an error of its line only
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
            except KeyboardInterrupt:  # discards the line that was being typed
                print()
            except UsageError as error:
                # options have no dashes here
                print(f"error: {re.sub(r'--(?=[a-z])', '', str(error))}", file=sys.stderr)

    def answer(self, line: str) -> bool:
        """Execute a line; return whether to continue.

        Raises:
            UsageError: If it cannot be executed.
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
                self.options = with_option(self.options, rest)
            case "/again":
                if self.prompt is None:
                    raise UsageError("/again: there is no prompt yet. Type one.")
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
        """Continue a prompt; Ctrl-C keeps the text so far."""
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        self.options.check()
        if self.options.num_beams > 1:  # beams are known only at the end
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
                sample = print_stream(prompt, pieces, written)
            except KeyboardInterrupt:
                print(" (stopped)\n")
                shown = seed if one.do_sample else None
                self.samples.append(Sample(prompt, shown, "".join(written), ended=False))
                return
            print()
            print_forgotten(self.loaded, [sample])
            self.samples.append(sample)

    def save(self, name: str) -> None:
        """Write the samples so far."""
        if not name:
            raise UsageError(
                "/save: the file is missing. Write /save samples.txt or samples.jsonl."
            )
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


def with_option(options: SamplingOptions, words: str) -> SamplingOptions:
    """Return options with one of them changed.

    Args:
        options: The present options.
        words: A name and a value; several stop strings are a JSON list.

    Raises:
        UsageError: If there is no such option, or the value is invalid.
    """
    name, _, value = words.partition(" ")
    value = value.strip()
    if not value:
        raise UsageError("/set: a name and a value are needed. Write /set temperature 0.9.")
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
