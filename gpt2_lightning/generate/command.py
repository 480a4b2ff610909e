"""``generate``: continue prompts with a trained model."""

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.parser import (
    Parser,
    gather,
    summary,
    value_of,
    with_our_names,
    with_underscores,
)
from gpt2_lightning.startup import heavy_imports

if TYPE_CHECKING:  # heavy imports wait until the words are known to be right
    from gpt2_lightning.generate.drawing import Sample
    from gpt2_lightning.generate.text_model import TextModel

# flags of other tools with the same meaning
OTHER_NAMES = (
    *("length", "max_tokens", "num_samples", "nsamples", "n"),
    *("k", "p", "topk", "topp", "model_name_or_path", "model_path"),
)


def generate(
    model: str,
    prompt: list[str],
    sampling: SamplingOptions,
    prompts_file: str | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    stream: bool = False,
    interactive: bool = False,
    output: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: Literal["fp32", "bf16"] | None = None,
) -> None:
    """Continue prompts with a trained model.

    A text may exceed the model's positions: each time they are full, all but the last half of them
    is dropped.

    Args:
        model: Run folder such as lightning_logs/version_0 (its best model), .ckpt, folder in
            Hugging Face format, or Hub id.
        prompt: Text to continue; may be repeated. Without any, and without --prompts_file, prompts
            are read from standard input, one a line.
        sampling: Sampling options.
        prompts_file: File of prompts: one a line, or .jsonl with a "prompt" in each line.
        max_length: Tokens of prompt and text together at most, as in transformers; null goes by
            --max_new_tokens.
        batch_size: Samples at a time.
        stream: Print the text of one sample while it is generated.
        interactive: Type prompts, and change the options in between.
        output: Write the samples to this file, .txt or .jsonl, instead of the screen;
            earlier samples there are replaced.
        revision: Branch, tag or commit of --model on the Hub.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Type of the weights; null keeps theirs.

    Raises:
        UsageError: If model, prompts and options do not fit together.
    """
    sampling.check()
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: must be >= 1.")
    if interactive:
        for flag, given in (
            ("--prompt", prompt),
            ("--prompts_file", prompts_file),
            ("--stream", stream),
            ("--output", output),
            ("--max_length", max_length),
        ):
            if given:
                raise UsageError(
                    f"{flag}: with --interactive, prompts are typed, their texts are streamed, and "
                    "/save writes them; --max_new_tokens sets their length. Leave it out."
                )

    with heavy_imports():
        from gpt2_lightning.data.prompts import read_prompts
        from gpt2_lightning.generate.drawing import draw, sample_file, write_samples
        from gpt2_lightning.generate.screen import print_forgotten, progress
        from gpt2_lightning.generate.text_model import load_model
        from gpt2_lightning.logs import quieten
        from gpt2_lightning.model.gpt2 import place

    file = None if output is None else sample_file(output, flag="--output")
    if unused := sampling.unused():
        print(f"--do_sample false: {', '.join(unused)} have no effect.", file=sys.stderr)
    prompts = list(prompt)
    if prompts_file is not None:
        prompts += read_prompts(prompts_file, flag="--prompts_file")
        if file is not None and file.exists() and file.samefile(Path(prompts_file).expanduser()):
            raise UsageError(f"--output {output}: the prompts are read from it. Give another name.")
    if not prompts and not interactive:
        prompts = _from_standard_input()
    if stream and len(prompts) > 1:
        raise UsageError(
            f"--stream: only one prompt can be streamed (got {len(prompts)}). Give one, or leave "
            "--stream out."
        )
    quieten()
    loaded = load_model(model, revision)
    place(loaded.model, device, dtype)
    if interactive:
        from gpt2_lightning.generate.screen import Repl

        Repl(loaded, sampling).run()
        return
    if stream:
        samples = [_stream(loaded, prompts[0], sampling, max_length)]
    else:
        with progress(enabled=len(prompts) > 1) as advance:
            samples = draw(
                loaded.model,
                loaded.tokenizer,
                prompts,
                sampling,
                batch_size=batch_size,
                roll=True,
                max_length=max_length,
                advance=advance,
            )
        if file is None:
            for sample in samples:
                print(sample, flush=True)
    print_forgotten(loaded, samples)
    if file is not None:
        write_samples(samples, file)
        print(f"{len(samples)} samples of {len(prompts)} prompts: {file}")


def _from_standard_input() -> list[str]:
    from gpt2_lightning.data.prompts import read_lines

    terminal = sys.stdin is None or sys.stdin.isatty()
    lines = {} if terminal else read_lines(sys.stdin.buffer.read(), "standard input")
    if not lines:
        raise UsageError(
            '--prompt: there is no text to continue. Write --prompt "Once upon a time", or give '
            "--prompts_file or --interactive."
        )
    return list(lines.values())


def _stream(
    loaded: "TextModel", prompt: str, sampling: SamplingOptions, max_length: int | None
) -> "Sample":
    from gpt2_lightning.generate.drawing import stream
    from gpt2_lightning.generate.screen import print_stream

    if sampling.num_return_sequences is None:
        sampling = replace(sampling, num_return_sequences=1)
    pieces = stream(
        loaded.model, loaded.tokenizer, prompt, sampling, roll=True, max_length=max_length
    )
    return print_stream(prompt, pieces, [])


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    parser = Parser(prog="gpt2_lightning generate", description=summary(generate))
    parser.add_argument("--config", action="config", help="YAML file of these flags.")
    texts = {
        "prompt": "Text to continue; may be repeated. Without any, and without --prompts_file, "
        "prompts are read from standard input, one a line.",
        "stop": "String before which a sample ends; may be repeated.",
    }
    for name, meaning in texts.items():
        parser.add_argument(f"--{name}", type=list[str], default=[], help=meaning)
    switches = {
        "stream": "Print the text of one sample while it is generated.",
        "interactive": "Type prompts, and change the options in between.",
    }
    for name, meaning in switches.items():
        parser.add_argument(
            f"--{name}", type=bool, nargs="?", const=True, default=False, help=meaning
        )
    parser.add_function_arguments(generate, as_group=False, skip={"sampling", *texts, *switches})
    parser.add_class_arguments(SamplingOptions, skip={"stop"})
    # parsed first: the parser would read null, or [1, 2], as YAML instead of text
    rest, given = words, {}
    for name in texts:
        rest, given[name] = gather(rest, f"--{name}")
    rest = with_our_names(with_underscores(rest), OTHER_NAMES)
    if value_of(rest, "--max_length") and value_of(rest, "--max_new_tokens"):
        raise UsageError(
            "--max_length: it counts the prompt's tokens, --max_new_tokens does not. Give only one."
        )
    options = parser.parse_words(rest)
    options |= {name: values for name, values in given.items() if values}
    names = [field.name for field in fields(SamplingOptions)]
    sampling = SamplingOptions(**{name: options.pop(name) for name in names})
    generate(sampling=sampling, **options)
