"""YAML files of settings, checked before they are parsed: size, syntax and keys."""

import codecs
import difflib
import locale
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from gpt2_lightning.errors import UsageError
from gpt2_lightning.untrusted import AmbiguousYAML, UnsafeYAML, check_yaml

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


def check_config_files(words: list[str], parser: ArgumentParser) -> None:
    """See that the config files of a command line are files of its settings.

    Args:
        words: The command line, after the verb.
        parser: The verb's, which knows the settings.

    Raises:
        UsageError: If one cannot be read, is no YAML, or holds what is no setting.
    """
    for flag, file in given_files(words):
        check_config_file(file, f"{flag} {file}", parser)


def given_files(words: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield the config files that a command line names, each with its flag."""
    for word, following in pairwise([*words, ""]):
        flag, equals, value = word.partition("=")
        if flag in FLAGS and Path(name := value if equals else following).is_file():
            yield flag, Path(name)


def check_config_file(file: Path, named: str, parser: ArgumentParser) -> dict[str, Any]:
    """See that a config file is one of a verb's settings.

    Args:
        file: The file.
        named: How it was asked for, for messages.
        parser: The verb's, which knows the settings.

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
        option.removeprefix("--")
        for action in parser._actions  # as jsonargparse keeps them; it lists them nowhere else
        for option in action.option_strings
        if option.startswith("--") and not option.endswith(".help")  # of what a class takes
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
