"""Words of the command line: dashes, repeated flags, and messages for what cannot be parsed."""

import difflib
import re
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from gpt2_lightning.errors import UsageError


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
        close = difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
        hint = f" Did you mean {close[0]}?" if close else " --help lists the flags."
        raise UsageError(f"{flag}: there is no such flag.{hint}")
    if missing := re.search(r"the following arguments are required: (.*)", text):
        names = ", ".join(f"--{name}" for name in missing[1].split(", "))
        needed = "they have" if "," in names else "it has"
        raise UsageError(f"{names}: {needed} to be given. --help lists the flags.")
    raise UsageError(_plain(text))


def _plain(message: str) -> str:
    """Turn jsonargparse's words for a value of the wrong type into a user's."""
    if "any of the Union subtypes" in message:
        flag, found = message.partition(":")[0], re.search(r"Given value: (.*)", message)
        subtypes = message.partition(" Errors: ")[0]
        kinds = re.findall(r"typing\.Literal\[(.*?)\]", subtypes)
        choices = dict.fromkeys(choice for kind in kinds for choice in kind.split(", "))
        types = re.findall(r"<class '(?:\w+\.)*(\w+)'>", subtypes)
        wanted = ["one of " + ", ".join(choices)] if choices else []
        wanted += ["null" if name == "NoneType" else f"a value of type {name}" for name in types]
        if found and wanted:
            message = f"{flag}: expected {' or '.join(wanted)}. Found: {found[1]}"
    message = re.sub(r"^Call to compute_fn of link .*? failed: ", "", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    message = re.sub(r"Expected a typing\.Literal\[(.*?)\]\.", r"expected one of \1.", message)
    message = re.sub(r"Expected a <class '(\w+)'>", r"expected a value of type \1", message)
    return re.sub(r"Got value: (.*)", r"Found: \1", message)


def _options(parser: ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


class Parser(ArgumentParser):
    """The parser of our own verbs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)  # --mod is a typo, not --model

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message instead of printing the usage and ending the process."""
        refuse(self, message)
