"""Files that others wrote: their size, depth and paths are looked at before a parser sees them."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

MOST_YAML = 10_000_000  # characters; a run's config.yaml has 4,000

MOST_NODES = 100_000  # of a YAML document, its aliases written out

DEEPEST = 100  # lists and mappings inside each other; --trainer.logger has 4

MOST_JSON = 50_000_000  # bytes; the largest tokenizer.json in use has 35 million


class UnsafeYAML(yaml.YAMLError):
    """A YAML document that is not read: too large, too deep, or ambiguous."""


class AmbiguousYAML(UnsafeYAML):
    """A YAML document with a key that stands twice, or an alias of nothing; or it is plain text."""


@dataclass
class _Open:
    """A list or mapping that has begun and not yet ended, or the document itself."""

    anchor: str | None
    mapping: bool
    nodes: int = 1
    entries: int = 0
    keys: set[str] = field(default_factory=set)


def check_yaml(text: str) -> None:
    """See that a YAML document can be read in bounded time and memory, and means what it says.

    An alias costs a few letters and stands for all that its anchor holds: nine levels of nine are
    387 million values. A key that stands twice is taken from its last place, without a word.

    Args:
        text: The document.

    Raises:
        UnsafeYAML: If it is too large or too deep.
        AmbiguousYAML: If it refers to itself or to nothing, or a key stands twice.
        yaml.YAMLError: If it is no YAML.
    """
    if len(text) > MOST_YAML:
        raise UnsafeYAML(f"{len(text):,} characters; {MOST_YAML:,} are the most that are read")
    sizes: dict[str, int] = {}  # nodes below each anchor, aliases written out
    stack = [_Open(None, mapping=False, nodes=0)]
    for event in _events(text):
        line = event.start_mark.line + 1
        match event:
            case yaml.CollectionStartEvent():
                if len(stack) > DEEPEST:
                    raise UnsafeYAML(f"line {line}: more than {DEEPEST} levels inside each other")
                stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
                continue
            case yaml.CollectionEndEvent():
                ended = stack.pop()
                nodes, anchor = ended.nodes, ended.anchor
            case yaml.AliasEvent():
                if event.anchor not in sizes:
                    raise AmbiguousYAML(
                        f"line {line}: *{event.anchor} stands for nothing before it"
                    )
                nodes, anchor = sizes[event.anchor], None
            case yaml.ScalarEvent():
                _check_scalar(event, stack[-1], line)
                nodes, anchor = 1, event.anchor
            case _:
                continue
        if anchor is not None:
            sizes[anchor] = nodes
        stack[-1].nodes += nodes
        stack[-1].entries += 1
        if stack[-1].nodes > MOST_NODES:
            raise UnsafeYAML(
                f"line {line}: more than {MOST_NODES:,} values, aliases (*name) written out"
            )


def _events(text: str) -> Iterator[Any]:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml, Python's own
    yield from yaml.parse(text, Loader=loader)


def _check_scalar(event: Any, inside: _Open, line: int) -> None:
    value = str(event.value)
    if inside.mapping and inside.entries % 2 == 0:
        if value in inside.keys and value != "<<":  # which YAML lets stand several times
            raise AmbiguousYAML(f"line {line}: {value} stands twice. Join the two")
        inside.keys.add(value)
    if "&" in value and "*" in value:  # jsonargparse reads text as YAML once more
        try:
            check_yaml(value)
        except AmbiguousYAML:
            return
        except UnsafeYAML:
            raise
        except yaml.YAMLError:
            return


def read_yaml(file: Path) -> Any:
    """Read a YAML file within the bounds of `check_yaml`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not UTF-8, or no such YAML.
    """
    _check_size(file, MOST_YAML)
    return parse_yaml(file.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """Parse YAML within the bounds of `check_yaml`.

    Raises:
        ValueError: If it is no such YAML.
    """
    try:
        check_yaml(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_json(file: Path, most: int = MOST_JSON) -> Any:
    """Read a JSON file, if it is not larger than a file of its kind can be.

    Args:
        file: The file.
        most: Bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is too large, not UTF-8, too deep, or no JSON.
    """
    _check_size(file, most)
    return parse_json(file.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Parse JSON that is not nested deeper than `DEEPEST`.

    Python's parser takes some hundreds of levels; what then copies or compares the value does not.

    Raises:
        ValueError: If it is no JSON, or nested deeper.
    """
    with suppress(RecursionError):
        value = json.loads(text)
        level = [value]
        for _ in range(DEEPEST + 1):
            level = [
                inner
                for it in level
                if isinstance(it, dict | list)
                for inner in (it.values() if isinstance(it, dict) else it)
            ]
            if not level:
                return value
    raise ValueError(f"its lists or objects are nested too deeply; {DEEPEST} levels are read")


def _check_size(file: Path, most: int) -> None:
    if not file.is_file() and file.exists():
        raise ValueError("it is no regular file")  # a pipe would be waited for
    if (size := file.stat().st_size) > most:
        raise ValueError(f"it has {size:,} bytes; {most:,} are the most that are read")


def misfit(value: Any, form: Any, at: str = "") -> str | None:
    """Find what is of another type than it should be in plain data that others wrote.

    Args:
        value: The data. What is missing, or null, fits.
        form: A type; a list of one form, which all entries of a list have; or forms by key, those
            of all others under ``*``. Keys without a form may hold anything.
        at: Where the data stand in the whole.

    Returns:
        The dotted name of the first that does not fit, and what it is; None where all do.
    """
    if value is None:
        return None
    if isinstance(form, dict) and isinstance(value, dict):
        rest = form.get("*", object)
        inner = [(f"{at}.{key}", entry, form.get(key, rest)) for key, entry in value.items()]
    elif isinstance(form, list) and isinstance(value, list | tuple):
        inner = [(f"{at}.{index}", entry, form[0]) for index, entry in enumerate(value)]
    elif isinstance(form, dict | list) or not isinstance(value, form):
        return f"{at or 'all of it'} is of type {type(value).__name__}"
    else:
        return None
    found = (misfit(entry, of, name.removeprefix(".")) for name, entry, of in inner)
    return next((it for it in found if it is not None), None)


def is_inside(folder: Path, name: str) -> bool:
    """Tell whether a name that stands in a folder's own files leads to a place in that folder.

    Args:
        folder: The folder.
        name: A relative path with slashes, as shard lists and data sets have it.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        return False
    return ":" not in path.parts[0] and not leads_outside(folder, folder / name)


def leads_outside(folder: Path, file: Path) -> bool:
    """Tell whether a file of a folder is a link to a place outside it.

    The Hub's cache keeps content in ``blobs`` beside the folder, and links to it: that counts as
    inside.
    """
    target = file.resolve()
    if target.is_relative_to(folder.resolve()):
        return False
    kept = target.parent
    return not (kept.name == "blobs" and kept.parent.name.startswith(("models--", "datasets--")))
