"""TextModel: a trained model and its tokenizer, from a run, a checkpoint, a folder or the Hub."""

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_lightning.checkpoint import (
    is_sharded,
    log,
    read_checkpoint,
)
from gpt2_lightning.data.token_store import cache_tokenizer
from gpt2_lightning.data.tokenizer import load_tokenizer
from gpt2_lightning.errors import UsageError, reason
from gpt2_lightning.generate.drawing import Sample, draw, stream
from gpt2_lightning.logs import quieten_hub
from gpt2_lightning.model.gpt2 import DtypeName, check_logits, from_checkpoint, place
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.parser import flag_meant
from gpt2_lightning.pretrained import check_weights, load_config, load_weights, what_tokenizer_lacks
from gpt2_lightning.run_folder import Run, check_run, newest_run
from gpt2_lightning.storage import scratch_folder


class SamplingKeywords(TypedDict, total=False):
    """The fields of `SamplingOptions` as keywords, except the one that decides a return type."""

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    num_beams: int
    stop: list[str]
    seed: int


@dataclass
class TextModel:
    """A language model, in eval mode, and its tokenizer.

        from gpt2_lightning import load

        model = load("lightning_logs/version_3")
        print(model.generate("Once upon a time", temperature=0.9, seed=7))

    Attributes:
        model: The language model.
        tokenizer: Its tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @overload
    def generate(
        self,
        prompt: str,
        *,
        num_return_sequences: None = None,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: str,
        *,
        num_return_sequences: int,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        num_return_sequences: None = None,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompt: list[str],
        *,
        num_return_sequences: int,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[list[str]]: ...

    def generate(
        self,
        prompt: str | list[str],
        *,
        num_return_sequences: int | None = None,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> str | list[str] | list[list[str]]:
        """Continue a prompt, or several.

        Args:
            prompt: The text to continue, or a list of texts.
            num_return_sequences: Samples for each prompt; null is one, not in a list.
            roll: Continue past the model's positions, keeping the last half of the context.
            max_length: Tokens of prompt and text together at most, as in transformers, instead of
                ``max_new_tokens``.
            options: Sampling options: the fields of `SamplingOptions`.

        Returns:
            The generated text, without the prompt: a string for a prompt, a list of them for a
            list of prompts. With ``num_return_sequences``, a list instead of each string.

        Raises:
            TypeError: If there is no such option.
            UsageError: If an option is out of its range, or the text exceeds the model's positions
                without ``roll``.
        """
        one = isinstance(prompt, str)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        count = 1 if num_return_sequences is None else num_return_sequences
        _check_options(max_length, options)
        sampling = SamplingOptions(num_return_sequences=count, **options)
        with _naming_arguments():
            samples = draw(
                self.model, self.tokenizer, prompts, sampling, roll=roll, max_length=max_length
            )
        texts = [sample.text for sample in samples]
        if num_return_sequences is None:
            return texts[0] if one else texts
        of_each = [texts[start : start + count] for start in range(0, len(texts), count)]
        return of_each[0] if one else of_each

    def stream(
        self,
        prompt: str,
        *,
        roll: bool = False,
        max_length: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Generator[str, None, Sample]:
        """Continue a prompt, and stream the text.

        Args:
            prompt: The text to continue.
            roll: Continue past the model's positions, keeping the last half of the context.
            max_length: Tokens of prompt and text together at most, as in transformers, instead of
                ``max_new_tokens``.
            options: Sampling options: the fields of `SamplingOptions`.

        Yields:
            Pieces of the text, in whole characters and without stop strings.

        Returns:
            The sample, as the generator's value.

        Raises:
            TypeError: If there is no such option.
            UsageError: If an option is out of its range or requests beams, or the text exceeds the
                model's positions without ``roll``.
        """
        _check_options(max_length, options)
        sampling = SamplingOptions(num_return_sequences=1, **options)
        with _naming_arguments():
            return stream(
                self.model, self.tokenizer, prompt, sampling, roll=roll, max_length=max_length
            )


ARGUMENTS = (
    *("name", "revision", "device", "dtype", "num_return_sequences", "roll", "max_length"),
    *SamplingKeywords.__annotations__,
)


@contextmanager
def _naming_arguments() -> Iterator[None]:
    """Replace the flags in messages by names of arguments: ``--top_k`` by ``top_k``."""
    try:
        yield
    except UsageError as error:
        names = "|".join(ARGUMENTS)
        raise UsageError(re.sub(rf"--({names})\b", r"\1", str(error))) from error.__cause__


def _check_options(max_length: int | None, options: SamplingKeywords) -> None:
    known = [f"--{name}" for name in ARGUMENTS[4:]]
    for name in options:
        if f"--{name}" not in known:
            meant = flag_meant(f"--{name}", known)
            hint = "help(TextModel.generate) lists them."
            if meant is not None:
                hint = f"Did you mean {meant.removeprefix('--')}?"
            raise TypeError(f"{name}: there is no such option. {hint}")
    if max_length is not None and "max_new_tokens" in options:
        raise UsageError(
            f"max_length {max_length}: max_new_tokens {options['max_new_tokens']} is given, too. "
            "Give only one: max_length counts the prompt's tokens, max_new_tokens does not."
        )


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: DtypeName | None = None,
) -> TextModel:
    """Load a model and its tokenizer onto a device.

    Args:
        name: A run folder, a ``.ckpt``, a folder in Hugging Face format or a Hub id.
        revision: Branch, tag or commit on the Hub.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``fp32`` or ``bf16``; null keeps the type of the weights.

    Raises:
        UsageError: If no model is found there, or the device cannot be used.
    """
    quieten_hub()
    with _naming_arguments():
        loaded = load_model(name, revision, flag="--name")
        place(loaded.model, device, dtype)
    return loaded


def load_model(name: str, revision: str | None = None, *, flag: str = "--model") -> TextModel:
    """Load a model and its tokenizer.

    Args:
        name: A run folder such as ``lightning_logs/version_3`` (its best model), a ``.ckpt``, a
            folder in Hugging Face format, or a Hub id.
        revision: Branch, tag or commit on the Hub.
        flag: The flag that named it, for messages.

    Raises:
        UsageError: If no model is found there, it has no tokenizer, or it is no GPT-2-like model.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not is_sharded(path) and not (path / "config.json").is_file():
        path = _inside_run(path, flag)
    if path.is_file() or is_sharded(path):
        return load_checkpoint(path, flag=flag)
    check_run(name, flag)
    said, where = f"{flag} {name}", str(path) if path.is_dir() else name
    try:
        if path.is_dir():
            check_weights(path, said)
        config = load_config(where, revision, said=said)
        model = load_weights(where, config, revision, dtype="auto")
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{said}: no model was found there ({reason(error)}). "
            "Give a run folder such as lightning_logs/version_0, a .ckpt, a folder in Hugging "
            "Face format, or a Hub id such as openai-community/gpt2."
        ) from error
    check_logits(model.eval(), said)
    tokenizer = load_tokenizer(where, revision, flag=flag)
    if lacking := what_tokenizer_lacks(tokenizer, config):
        log.warning("%s: %s.", said, lacking)
    return TextModel(model, tokenizer)


def _inside_run(folder: Path, flag: str) -> Path:
    run = Run(folder)
    if (run.hf / "config.json").is_file():
        if (newer := run.newer_than_hf()) is None:
            return run.hf
        log.warning("%s %s: %s, and is used.", flag, folder, run.older_hf(newer))
        return newer
    if (checkpoint := run.best_checkpoint()) is not None:
        return checkpoint
    if (newest := newest_run(folder)) is not None:
        raise UsageError(
            f"{flag} {folder}: it is a folder of runs. Give one of them: the newest is {newest}."
        )
    raise UsageError(
        f"{flag} {folder}: neither a model in Hugging Face format (config.json) nor a run folder "
        "with hf/ or checkpoints/."
    )


def load_checkpoint(file: Path, *, flag: str = "--model") -> TextModel:
    """Load the model and the tokenizer of a checkpoint.

    Args:
        file: A ``.ckpt``, or the folder of a sharded checkpoint.
        flag: The flag that named it, for messages.

    Raises:
        UsageError: If it is damaged, not one of this package's, or its logits are not numbers.
    """
    checkpoint = read_checkpoint(file)
    model = from_checkpoint(checkpoint, f"{flag} {file}")
    check_logits(model.eval(), f"{flag} {file}")
    with scratch_folder() as folder:
        tokenizer = load_tokenizer(str(cache_tokenizer(checkpoint["tokenizer_files"], folder)))
    return TextModel(model, tokenizer)
