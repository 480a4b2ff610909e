"""Selects the files of a repository to download."""

import re
from pathlib import PurePosixPath

from gpt2_lightning.data.files import first_names
from gpt2_lightning.data.readers import is_data
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetch.hubs import Listing, RemoteFile
from gpt2_lightning.pretrained import INDEX, PICKLED, WHOLE

SETTINGS = ("config.json", "generation_config.json")

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",  # of Chinese GPT-2s with BERT's vocabulary
    "tokenizer.model",
    "spiece.model",
)

SHARDS = {
    WHOLE: re.compile(r"model-\d+-of-\d+\.safetensors"),
    PICKLED: re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
}

ABOUT = {"dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json"}


def model_files(
    listing: Listing, *, everything: bool, allow_pickle: bool
) -> tuple[list[RemoteFile], bool]:
    """Choose the files of a model.

    Args:
        listing: The repository.
        everything: Select all files.
        allow_pickle: Select pickled weights if there are no others.

    Returns:
        The files, and whether the weights are pickled.

    Raises:
        UsageError: If the repository holds no model, or one whose weights are only pickled.
    """
    repo = listing.repo
    by_path = {file.path: file for file in listing.files}
    if "config.json" not in by_path:
        raise UsageError(
            f"{repo.label}: it has no config.json, so it is no model for transformers. It holds: "
            f"{first_names(by_path)}."
        )
    weights, pickled = _weights(by_path, WHOLE), False
    if not weights and (weights := _weights(by_path, PICKLED)):
        pickled = True
        if not allow_pickle:
            raise UsageError(
                f"{repo.label}: its weights exist only as {PICKLED}, a pickle, which can run code "
                "when it is read. --allow_pickle reads only tensors from it, and "
                f"writes {WHOLE}."
            )
    if not weights:
        raise UsageError(
            f"{repo.label}: it has no weights as {WHOLE} or {PICKLED}. It holds: "
            f"{first_names(by_path)}."
        )
    if everything:
        return list(listing.files), pickled
    return [by_path[name] for name in (*SETTINGS, *TOKENIZER) if name in by_path] + weights, pickled


def _weights(by_path: dict[str, RemoteFile], name: str) -> list[RemoteFile]:
    if name in by_path:
        return [by_path[name]]
    if index := by_path.get(name + INDEX):
        shards = [file for path, file in by_path.items() if SHARDS[name].fullmatch(path)]
        return [index, *shards]
    return []


def data_files(listing: Listing, subset: str | None, *, everything: bool) -> list[RemoteFile]:
    """Choose the files of a data set.

    Args:
        listing: The repository.
        subset: The folder to download; null is the only one.
        everything: Select all files of the repository.

    Raises:
        UsageError: If the subset does not exist, or there are several and none was named.
    """
    repo = listing.repo
    if everything:
        return list(listing.files)
    folders: dict[str, list[RemoteFile]] = {}
    for file in listing.files:
        path = PurePosixPath(file.path)
        known = is_data(path.name) and path.suffix.lower() != ".md"
        if known and path.name not in ABOUT and not any(it.startswith(".") for it in path.parts):
            folders.setdefault(str(path.parent), []).append(file)
    if subset is not None:
        chosen = [file for folder in _below(subset, folders) for file in folders[folder]]
        if not chosen:
            raise UsageError(
                f"--subset {subset}: {repo.name} has no folder of that name with data in it. "
                + (f"It has: {', '.join(map(_named, sorted(folders)))}." if folders else "")
            )
        return chosen
    if len(folders) > 1:
        raise UsageError(
            f"{repo.label}: it has several subsets. Choose one: "
            + " or ".join(f"--subset {name}" for name in sorted(folders) if name != ".")
            + "; --all downloads them all."
        )
    if not folders:
        raise UsageError(
            f"{repo.label}: it has no data that can be read here (parquet, jsonl, csv, txt). It "
            f"holds: {first_names(file.path for file in listing.files)}."
        )
    return next(iter(folders.values()))


def _below(subset: str, folders: dict[str, list[RemoteFile]]) -> list[str]:
    inner = subset.strip("/")
    return [name for name in folders if name == inner or name.startswith(inner + "/")]


def _named(folder: str) -> str:
    return "files at its top" if folder == "." else folder
