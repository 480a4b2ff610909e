"""The words of a command line and the YAML files it names: read, and refused with a remedy."""

import codecs
import difflib
import json
import locale
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from gpt2_lightning.errors import UsageError
from gpt2_lightning.untrusted import AmbiguousYAML, UnsafeYAML, check_yaml

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


def recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name: a wheel carries configs/ inside."""
    packaged = Path(__file__).parent / "configs"
    folder = packaged if packaged.is_dir() else packaged.parents[1] / "configs"
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in sorted(folder.rglob("*.yaml"))
    }


def with_recipes(words: list[str]) -> list[str]:
    """Put the files of recipes in the place of their names, unless files have those names."""

    def found(name: str) -> str:
        return name if Path(name).is_file() else str(recipes().get(name, name))

    replaced: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        flag, equals, value = word.partition("=")
        if before in FLAGS:
            replaced.append(found(word))
        elif equals and flag in FLAGS:
            replaced.append(f"{flag}={found(value)}")
        else:
            replaced.append(word)
    return replaced


def with_underscores(words: list[str]) -> list[str]:
    """Let dashes in flag names stand for underscores, which alone jsonargparse knows."""

    def mend(word: str) -> str:
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        return "--" + name[2:].replace("-", "_") + equals + value

    return [mend(word) for word in words]


def without_additions(words: list[str]) -> list[str]:
    """Leave out what a command line adds to lists: ``--flag+=value`` and ``--flag+ value``."""
    left: list[str] = []
    is_value = False
    for word in words:
        flag, equals, _ = word.partition("=")
        adds = flag.startswith("--") and flag.endswith("+")
        if not adds and not is_value:
            left.append(word)
        is_value = adds and not equals
    return left


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
    known = [option for option in option_strings(parser) if option.startswith("--")]
    text = " ".join(message.split())
    if unknown := re.search(r"(?:Unrecognized arguments|unrecognized arguments): (.*)", text):
        words = [word.partition("=")[0] for word in unknown[1].split() if word.startswith("--")]
        if not words:
            raise _stray(unknown[1], known)
        raise no_such_flag(words[0], known)
    if missing := re.search(r"the following arguments are required: (.*)", text):
        names = missing[1].split(", ")
        such = " ".join(f"--{name} {EXAMPLES.get(name, name.upper())}" for name in names)
        raise UsageError(
            f"{', '.join(f'--{name}' for name in names)}: must be given, such as {such}. --help "
            "lists the flags."
        )
    raise UsageError(_plain(text))


def no_such_flag(flag: str, known: Sequence[str]) -> UsageError:
    """Say that there is no such flag, and which one was probably meant.

    Args:
        flag: What was given.
        known: The flags that there are.
    """
    flag = flag.removesuffix("+")
    # nobody means --trainer.logger+, which adds to a list, or --trainer.logger.help by another flag
    others = "+" if flag.endswith(".help") else ("+", ".help")
    meant = flag_meant(flag, [it for it in known if not it.endswith(others)])
    hint = f" Did you mean {meant}?" if meant else " --help lists the flags."
    return UsageError(f"{flag}: there is no such flag.{hint}")


# of values that a verb cannot do without
EXAMPLES = {"model": "lightning_logs/version_0", "to": "my_model"}


def _stray(text: str, known: list[str]) -> UsageError:
    """Say of words without a flag which they probably belong to."""
    first, *others = text.split()
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        meant = "--config"
    elif path.exists():  # a run or a text
        meant = "--data.source" if "--model.pretrained" in known else "--model"
    else:
        meant = "--prompt"
    if meant in known:
        hint = f"Did you mean {meant} {shlex.quote(text) if path.exists() else json.dumps(text)}?"
    else:
        hint = (
            "Put quotes around text with spaces; of several files give the folder; every value "
            "needs its flag, a model or run --model."
        )
    return UsageError(f"{first}{' ...' if others else ''}: no flag stands before it. {hint}")


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


def option_strings(parser: ArgumentParser) -> list[str]:
    """Return the flags of a parser, as jsonargparse keeps them; it lists them nowhere else."""
    return [option for action in parser._actions for option in action.option_strings]


class Parser(ArgumentParser):
    """The parser of our own verbs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # --mod is a typo, not --model

    def parse_words(self, words: list[str]) -> dict[str, Any]:
        """Return the options that a verb's words say, its config files read.

        Raises:
            UsageError: If a flag is unknown or missing, or a config file is none of the verb's.
        """
        words = with_recipes(with_underscores(words))
        check_config_files(words, option_strings(self))
        options: dict[str, Any] = self.parse_args(words).as_dict()
        options.pop("config", None)
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message instead of printing the usage and ending the process."""
        refuse(self, message)


MAX_BYTES = 1_000_000  # of a file; the longest config.yaml of a run has some 5,000

FLAGS = ("--config", "-c")

STRUCTURE = re.compile(r"[\[{&\n]")  # without one of these, YAML holds a single value

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")  # as a class or function is named

LIGHTNING = ("lightning.pytorch.", "lightning.fabric.", "gpt2_lightning.")

# what FSDP is told to wrap; such a class is compared with, not called
WRAPPED = "transformers.models."

# settings that are text or the name of a file, whatever they look like
TEXTS = (".data.", ".samples.", ".model.pretrained", ".model.revision")


def bound_yaml() -> None:
    """Bound what jsonargparse parses as YAML: config files, and the values of flags.

    A few hundred bytes of aliases of aliases would else become gigabytes of settings.
    """
    if not hasattr(load := get_loader("yaml"), "bounded"):
        set_loader("yaml", _bounded(load), exceptions=(yaml.YAMLError,))


def _bounded(load: Callable[[str], Any]) -> Callable[[str], Any]:
    def load_bounded(text: str) -> Any:
        if STRUCTURE.search(text):
            try:
                check_yaml(text)
            except AmbiguousYAML:  # a text of several lines, such as a prompt, or a play's [*Exit*]
                raise
            except UnsafeYAML as error:  # as a YAMLError it would make the value a plain string
                raise UsageError(f"{error}.") from error
        return load(text)

    load_bounded.bounded = True  # type: ignore[attr-defined] # a mark: it is set once a process
    return load_bounded


def check_config_files(words: list[str], flags: Sequence[str]) -> None:
    """See that the config files of a command line are files of its settings.

    Args:
        words: The command line, after the verb.
        flags: The verb's.

    Raises:
        UsageError: If one cannot be read, is no YAML, or holds what is no setting.
    """
    for flag, file in given_files(words):
        if not file.is_file():
            raise _no_config(flag, file)
        check_config_file(file, f"{flag} {file}", flags)


def given_files(words: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield the config files that a command line names, each with its flag."""
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        name = value if equals else following
        if flag in FLAGS and name and not STRUCTURE.search(name):  # else settings, as they stand
            yield flag, Path(name).expanduser()


def _no_config(flag: str, file: Path) -> UsageError:
    """Say that a config file is not there, and which one has nearly its name."""
    folder = file if file.is_dir() else file.parent
    names = [it.name for end in ("*.yaml", "*.yml") for it in sorted(folder.glob(f"[!.]{end}"))]
    close = difflib.get_close_matches(file.name, [] if folder == file else names, n=1)
    hint = f"Give a YAML file, or the name of a recipe: {', '.join(recipes())}."
    hint += f" The folder {folder.resolve()} holds {', '.join(names)}." if names else ""
    recipe = difflib.get_close_matches(file.stem, recipes(), n=1)
    if meant := [str(folder / name) for name in close] or recipe:
        hint = f"Did you mean {flag} {meant[0]}?"
    what = "is a folder" if file.is_dir() else "there is no such file"
    return UsageError(f"{flag} {file}: {what}. {hint}")


def check_config_file(file: Path, named: str, flags: Sequence[str]) -> dict[str, Any]:
    """See that a config file is one of a verb's settings.

    Args:
        file: The file.
        named: How it was asked for, for messages.
        flags: The verb's.

    Returns:
        The settings.

    Raises:
        UsageError: If it cannot be read, is no YAML, or holds what is no setting.
    """
    if (size := file.stat().st_size) > MAX_BYTES:
        raise UsageError(f"{named}: the file has {size:,} bytes; a file of settings has few.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{named}: not UTF-8 at byte {error.start}.") from error
    # jsonargparse reads the file once more, in the system's encoding
    system = locale.getpreferredencoding(False)
    if not text.isascii() and codecs.lookup(system).name != "utf-8":
        raise UsageError(
            f"{named}: it holds letters beyond ASCII, and this system reads files as {system}. "
            "PYTHONUTF8=1 in the environment reads them as UTF-8."
        )
    try:
        check_yaml(text)
        settings = get_loader("yaml")(text)
    except UnsafeYAML as error:
        raise UsageError(f"{named}: {error}.") from error
    except yaml.MarkedYAMLError as error:
        mark, where, hint = error.problem_mark, "", ""
        if mark is not None:
            where = f"line {mark.line + 1}, column {mark.column + 1}: "
            if text.split("\n")[mark.line][mark.column :].startswith("\t"):
                hint = " YAML is indented with spaces, not tabs."
        raise UsageError(f"{named}: no YAML ({where}{error.problem}).{hint}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{named}: no YAML ({' '.join(str(error).split())}).") from error
    if settings is None or (isinstance(settings, str) and not settings.strip()):
        raise UsageError(f"{named}: the file holds no settings.")
    if not isinstance(settings, dict):
        raise UsageError(
            f"{named}: settings are expected, such as `trainer:` and below it, indented, "
            f"`max_epochs: 3`. Found: {str(settings)[:60]}"
        )
    known = [
        flag.removeprefix("--")
        for flag in flags
        if flag.startswith("--") and not flag.endswith(".help")  # of what a class takes
    ]
    for key, value in _settings(settings, "", known):
        _check_key(key, value, named, known)
    return settings


def code_named_in(settings: Any, folder: Path | None = None) -> str | None:
    """Find a name of code in settings that is not a class of Lightning's or of this package.

    jsonargparse imports what a ``class_path`` names, and calls it with the ``init_args``, also
    where a value may be anything: a class, a function such as ``os.system``, or a file that lies
    in the run folder itself. Lightning's callbacks, loggers, strategies and plugins are no danger.

    Args:
        settings: As YAML or a checkpoint has them.
        folder: Of the file that they are from: it may refer to further files.

    Returns:
        The first such name, or file of further settings; None where there is none.
    """
    return next(_code_named_in(settings, "", folder or Path()), None)


def _code_named_in(value: Any, at: str, folder: Path) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if str(key).rpartition(".")[2] == "class_path" and not _is_of_lightning(inner):
                yield str(inner)
            yield from _code_named_in(inner, f"{at}.{key}", folder)
    elif isinstance(value, list):
        for inner in value:
            yield from _code_named_in(inner, at, folder)
    elif isinstance(value, str):
        if ":" in value or STRUCTURE.search(value):  # jsonargparse reads it as YAML once more
            try:
                inner = get_loader("yaml")(value)
            except yaml.YAMLError:
                return
            if isinstance(inner, dict | list):
                yield from _code_named_in(inner, at, folder)
                return
        if at.startswith(TEXTS) or value.startswith((*LIGHTNING, WRAPPED)):
            return
        is_name = DOTTED.fullmatch(value) and find_spec(value.partition(".")[0]) is not None
        if is_name or any((place / value).is_file() for place in (Path(), folder)):
            yield value


def _is_of_lightning(name: Any) -> bool:
    from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
    from lightning.pytorch import Callback
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.plugins import LayerSync, Precision
    from lightning.pytorch.profilers import Profiler
    from lightning.pytorch.strategies import Strategy

    kinds = (Callback, Logger, Strategy, Accelerator, Precision, CheckpointIO, ClusterEnvironment)
    if not isinstance(name, str) or not name.startswith(LIGHTNING):
        return False
    module, _, own = name.rpartition(".")
    try:
        found = getattr(import_module(module), own, None)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, (*kinds, LayerSync, Profiler))


def _settings(settings: dict[str, Any], prefix: str, known: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a file by their dotted names, as the flags have them."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        group = any(option.startswith(f"{key}.") for option in known)
        if group and isinstance(value, dict):
            yield from _settings(value, f"{key}.", known)
        else:
            yield key, value


def _check_key(key: str, value: Any, named: str, known: list[str]) -> None:
    groups = {option.rpartition(".")[0] for option in known}
    if key in groups:
        if value is None or (isinstance(value, str) and Path(value).is_file()):
            return  # nothing below it, or a file of its own
        raise UsageError(f"{named}: {key}: settings are expected below it. Found: {value}")
    parent = key.rpartition(".")[0]
    if key in known or (parent in known and parent not in groups):
        return  # what is inside a value is the parser's to check
    if below := [option for option in known if option.endswith(f".{key}")]:
        raise UsageError(
            f"{named}: {key} stands outside of its group. Write it below "
            f"`{below[0].rpartition('.')[0]}:`, indented; as a flag it is --{below[0]}."
        )
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]}?" if close else "--help lists the settings."
    raise UsageError(f"{named}: {key}: there is no such setting. {hint}")
