"""``.fetch.json``: what a fetched folder is, so that a second call need not ask."""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpt2_lightning.fetching.asked import Asked, Kind
from gpt2_lightning.fetching.content import sha256_of
from gpt2_lightning.untrusted import misfit, read_json

NAME = ".fetch.json"  # hidden: a .json in plain view would be taken for data
AUTHOR = "gpt2_lightning fetch"
# the types of what is read back, as `misfit` takes them
FORM = {
    **dict.fromkeys(("kind", "name", "hub", "endpoint", "revision", "commit"), str),
    "subsets": [str],
    "sha256": {"*": str},
    "size": {"*": int},
}


@dataclass(frozen=True)
class Manifest:
    """What a folder was fetched as.

    Attributes:
        kind: A model, or data.
        name: In the hub.
        hub: Which one.
        endpoint: Its address.
        revision: As asked for.
        commit: What it stood for.
        subsets: Of the data; none where it has no name, or all files were taken.
        everything: Whether all files were taken.
        sha256: Of each file, by its path, in hexadecimal.
        size: Of each file, in bytes.
    """

    kind: Kind
    name: str
    hub: str
    endpoint: str
    revision: str | None
    commit: str
    subsets: list[str]
    everything: bool
    sha256: dict[str, str]
    size: dict[str, int]

    def differs_from(self, asked: Asked, subset: str | None, everything: bool) -> str | None:
        """Return what else the folder was fetched as than is asked for now; None if nothing."""
        if (self.kind, self.name, self.hub) != (asked.kind, asked.name, asked.hub):
            return f"{self.kind} {self.name} from {self.hub}"
        if asked.revision not in (None, self.revision, self.commit):
            return f"revision {self.revision or 'of the main branch'} ({self.commit[:12]})"
        if everything and not self.everything:
            return "fewer files, without --all"
        if subset is not None and not self.subsets and not self.everything:
            return "without --subset"
        return None

    def lacks(self, subset: str | None) -> bool:
        """Tell whether a subset is not there yet, beside those that are."""
        return bool(subset and self.subsets and subset not in self.subsets and not self.everything)

    def damaged(self, folder: Path) -> list[str]:
        """Return the files that are no longer there, or at another size."""
        return [
            name
            for name, size in self.size.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != size
        ]


def write_manifest(
    folder: Path,
    asked: Asked,
    commit: str,
    subset: str | None,
    *,
    everything: bool,
    earlier: Manifest | None = None,
) -> Manifest:
    """Write down what a folder is, with the hash of each file in it.

    Args:
        folder: Where the files are.
        asked: What they were asked for as.
        commit: What its revision stood for.
        subset: Of the data.
        everything: Whether all files were taken.
        earlier: The folder that they will be added to.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != NAME)
    paths = {file.relative_to(folder).as_posix(): file for file in files}
    manifest = Manifest(
        kind=asked.kind,
        name=asked.name,
        hub=asked.hub,
        endpoint=asked.endpoint,
        revision=earlier.revision if earlier else asked.revision,
        commit=commit,
        subsets=[*(earlier.subsets if earlier else []), *([subset] if subset else [])],
        everything=everything,
        sha256=(earlier.sha256 if earlier else {})
        | {name: sha256_of(file) for name, file in paths.items()},
        size=(earlier.size if earlier else {})
        | {name: file.stat().st_size for name, file in paths.items()},
    )
    try:
        ours: str | None = version("gpt2-lightning")
    except PackageNotFoundError:  # run from its folder, not installed
        ours = None
    about = {"written_by": AUTHOR, "version": ours, **asdict(manifest)}
    (folder / NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return what a folder was fetched as; None if fetch did not write it."""
    try:
        about = read_json(folder / NAME)
        if about.pop("written_by") != AUTHOR or misfit(about, FORM) is not None:
            return None
        del about["version"]
        return Manifest(**about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
