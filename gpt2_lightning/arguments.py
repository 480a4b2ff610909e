"""Words of the command line: dashes, repeated flags, and messages for what cannot be parsed."""

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from gpt2_lightning.errors import UsageError

# Flags of neighbouring tools (transformers' scripts, nanoGPT, OpenAI's API) -> ours that do the
# same; a verb's is the first that it has. A flag that differs by its group alone, such as
# --learning_rate for --model.learning_rate, need not stand here.
FOREIGN = {
    # how to draw
    "length": ("max_new_tokens", "data.block_size"),
    "max_length": ("max_length", "data.block_size", "context"),
    "max_tokens": ("max_new_tokens",),
    "num_tokens": ("max_new_tokens",),
    "n_predict": ("max_new_tokens",),
    "num_samples": ("num_return_sequences", "samples"),
    "nsamples": ("num_return_sequences", "samples"),
    "n": ("num_return_sequences",),
    "k": ("top_k",),
    "p": ("top_p",),
    "topk": ("top_k",),
    "topp": ("top_p",),
    "temp": ("temperature",),
    "beams": ("num_beams",),
    "beam_size": ("num_beams",),
    "sample": ("do_sample",),
    "stop_token": ("stop",),
    "stop_strings": ("stop",),
    "stop_sequences": ("stop",),
    "text": ("prompt",),
    "start": ("prompt",),
    "input": ("prompt", "data.source"),
    "input_file": ("prompts_file", "data.source"),
    "file": ("prompts_file", "data.source"),
    # models and texts
    "model_name": ("model.pretrained", "model"),
    "model_path": ("model.pretrained", "model"),
    "model_name_or_path": ("model.pretrained", "model"),
    "checkpoint": ("ckpt_path", "model"),
    "ckpt": ("ckpt_path", "model"),
    "resume": ("ckpt_path",),
    "resume_from_checkpoint": ("ckpt_path",),
    "init_from": ("model.pretrained",),
    "tokenizer_name": ("data.tokenizer",),
    "data": ("data.source",),
    "data_dir": ("data.source",),
    "dataset": ("data.source",),
    "dataset_name": ("data.source",),
    "dataset_config": ("data.subset",),
    "dataset_config_name": ("data.subset",),
    "train_file": ("data.source",),
    "train_data_file": ("data.source",),
    "output_dir": ("trainer.default_root_dir", "output"),
    "out_dir": ("trainer.default_root_dir", "output"),
    "output_file": ("output",),
    "out": ("output", "trainer.default_root_dir"),
    # training
    "lr": ("model.learning_rate",),
    "epochs": ("trainer.max_epochs",),
    "num_epochs": ("trainer.max_epochs",),
    "num_train_epochs": ("trainer.max_epochs",),
    "steps": ("trainer.max_steps",),
    "max_iters": ("trainer.max_steps",),
    "max_train_steps": ("trainer.max_steps",),
    "per_device_train_batch_size": ("data.batch_size",),
    "gradient_accumulation_steps": ("trainer.accumulate_grad_batches",),
    "max_seq_length": ("data.block_size",),
    "seq_len": ("data.block_size",),
    "context_length": ("data.block_size", "context"),
    "max_grad_norm": ("trainer.gradient_clip_val",),
    "grad_clip": ("trainer.gradient_clip_val",),
    "lr_scheduler_type": ("model.schedule",),
    "num_warmup_steps": ("model.warmup_steps",),
    "warmup_iters": ("model.warmup_steps",),
    "eval_steps": ("trainer.val_check_interval",),
    "eval_interval": ("trainer.val_check_interval",),
    "logging_steps": ("trainer.log_every_n_steps",),
    "log_interval": ("trainer.log_every_n_steps",),
    "save_total_limit": ("checkpoint.save_top_k",),
    "fp16": ("trainer.precision", "dtype"),
    "bf16": ("trainer.precision", "dtype"),
    "gpus": ("trainer.devices", "device"),
    "seed": ("seed_everything",),
    "random_seed": ("seed", "seed_everything"),
}


def with_our_names(words: list[str], accepted: Collection[str]) -> list[str]:
    """Put our flags in the place of foreign ones whose meaning is the same.

    Args:
        words: The command line, with underscores in flag names.
        accepted: The foreign names that are taken; others are refused with ours named.

    Raises:
        UsageError: If both are given.
    """
    given = {word.partition("=")[0] for word in words}
    renamed = []
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--") and name in accepted:
            # those with a point are of Lightning's verbs
            ours = next(f"--{it}" for it in FOREIGN[name] if "." not in it)
            if ours in given:
                raise UsageError(f"{flag}: it is another name of {ours}. Give one of the two.")
            given.add(ours)
            flag = ours
        renamed.append(flag + equals + value)
    return renamed


def flag_meant(flag: str, known: Sequence[str]) -> str | None:
    """Return the flag that was probably meant: by its foreign name, its last part, its letters.

    Args:
        flag: What was given, such as --lr.
        known: The flags that there are.
    """
    name = flag.removeprefix("--").rpartition(".")[2]
    foreign = [f"--{ours}" for ours in FOREIGN.get(name, ()) if f"--{ours}" in known]
    same = [ours for ours in known if ours.endswith(f".{name}")]
    # of the same letters in another group, the shortest: --trainer.max_epochs
    found = foreign or sorted(same, key=len)
    return next(iter(found or difflib.get_close_matches(flag, known, n=1, cutoff=0.6)), None)


def with_underscores(words: list[str]) -> list[str]:
    """Let dashes in flag names stand for underscores, which alone jsonargparse knows."""

    def mend(word: str) -> str:
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        return "--" + name[2:].replace("-", "_") + equals + value

    return [mend(word) for word in words]


def gather(words: list[str], flag: str) -> tuple[list[str], list[str]]:
    """Take the values of a flag that may be repeated out of a command line.

    Returns:
        The other words, and the values.

    Raises:
        UsageError: If the flag stands at the end, without a value.
    """
    rest: list[str] = []
    values: list[str] = []
    stream = iter(words)
    for word in stream:
        if word == flag:
            try:
                values.append(next(stream))
            except StopIteration:
                raise UsageError(f"{flag}: it needs a value.") from None
        elif word.startswith(flag + "="):
            values.append(word.removeprefix(flag + "="))
        else:
            rest.append(word)
    return rest, values


def summary(verb: Callable[..., Any]) -> str:
    """Return the beginning of a verb's docstring, for its --help."""
    return (verb.__doc__ or "").partition("\n\n")[0]


def value_of(words: list[str], flag: str) -> str | None:
    """Return a flag's last value among the words, or None where it has none."""
    value = None
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            value = words[index + 1]
        elif word.startswith(flag + "="):
            value = word.partition("=")[2]
    return None if value in (None, "null") else value


def refuse(parser: ArgumentParser, message: str) -> NoReturn:
    """Raise what a parser would print, shortened, with the flag that was probably meant.

    Raises:
        UsageError: Always.
    """
    known = [option for option in _options(parser) if option.startswith("--")]
    text = " ".join(message.split())
    if unknown := re.search(r"(?:Unrecognized arguments|unrecognized arguments): (.*)", text):
        words = [word.partition("=")[0] for word in unknown[1].split() if word.startswith("--")]
        if not words:
            stray = unknown[1].split()
            raise UsageError(
                f"{stray[0]}{' ...' if len(stray) > 1 else ''}: no flag stands before it. Put "
                "quotes around text with spaces; of several files give the folder; every value "
                "needs its flag, a model or run --model."
            )
        flag = words[0]
        meant = flag_meant(flag, known)
        hint = f" Did you mean {meant}?" if meant else " --help lists the flags."
        raise UsageError(f"{flag}: there is no such flag.{hint}")
    if missing := re.search(r"the following arguments are required: (.*)", text):
        names = ", ".join(f"--{name}" for name in missing[1].split(", "))
        needed = "they have" if "," in names else "it has"
        raise UsageError(f"{names}: {needed} to be given. --help lists the flags.")
    raise UsageError(_plain(text))


def _plain(message: str) -> str:
    """Turn jsonargparse's words for a value of the wrong type into a user's."""
    if needs := re.fullmatch(
        r"argument (?:-\w/)?(--[\w.]+): expected (?:one|at least one) argument", message
    ):
        return f"{needs[1]}: it needs a value."
    if "any of the Union subtypes" in message:
        flag, found = message.partition(":")[0], re.search(r"Given value: (.*)", message)
        subtypes = re.search(r"Subtypes: \[(.*?)\] Errors: ", message)
        if found and subtypes:
            wanted = _wanted(subtypes[1], found[1])
            message = f"{flag}: expected {' or '.join(wanted)}. Found: {found[1]}"
    message = re.sub(r"^Call to compute_fn of link .*? failed: ", "", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    message = re.sub(r"Expected a typing\.Literal\[(.*?)\]\.", r"expected one of \1.", message)
    message = re.sub(r"Expected a <class '(?:tuple|list)'>", "expected a list, as [a, b]", message)
    message = re.sub(r"Expected a <class '(\w+)'>", r"expected a value of type \1", message)
    return re.sub(r"Got value: (.*)", r"Found: \1", message)


def _wanted(subtypes: str, found: str) -> list[str]:
    """Say which values the types of a union take.

    Args:
        subtypes: The types, as Python prints them.
        found: What was given instead.
    """
    wanted = []
    choices = re.findall(r"typing\.Literal\[(.*?)\]", subtypes)
    if choices:
        wanted.append("one of " + ", ".join(dict.fromkeys(", ".join(choices).split(", "))))
    classes = re.findall(r"(?<!\[)<class '([\w.]+)'>|([\w.]*)\[(?=[\w.]*str\])", subtypes)
    for name, container in classes:
        if container:
            wanted.append(f'a list, as ["{found}"]')
        elif name == "NoneType":
            wanted.append("null")
        elif "." in name:
            wanted.append(f"the name of a {name.rpartition('.')[2]} class")
        else:
            wanted.append(f"a value of type {name}")
    return wanted


def _options(parser: ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


class Parser(ArgumentParser):
    """The parser of our own verbs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # --mod is a typo, not --model

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message instead of printing the usage and ending the process."""
        refuse(self, message)
