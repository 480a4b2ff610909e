"""Whether a folder holds a whole model: configuration, weights that fit it, and a tokenizer."""

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.progress import megabytes
from gpt2_lightning.fetching.wanted import INDEX, PICKLED, TOKENIZER, WHOLE
from gpt2_lightning.fetching.whole_files import check_content

Shapes = dict[str, tuple[int, ...]]
AGAIN = "Fetch it again with: python -m gpt2_lightning fetch model NAME --to DIR."


def looks_like_model(folder: Path) -> bool:
    """Tell whether a folder holds a part of a model, if not all of it."""
    names = {"config.json", WHOLE, WHOLE + INDEX, PICKLED, PICKLED + INDEX, "tokenizer.json"}
    return any((folder / name).is_file() or (folder / name).is_symlink() for name in names)


def check_model(folder: Path) -> list[str]:
    """See that a folder is a whole model; return what it is, line by line.

    Raises:
        UsageError: If something is missing, cut short, damaged, or does not fit the rest.
    """
    files = [
        path
        for path in sorted(folder.iterdir())
        if (path.is_file() or path.is_symlink()) and not path.name.startswith(".")
    ]
    verified = check_content(folder, files)
    if not (folder / "config.json").is_file():
        raise UsageError(f"--check {folder}: config.json is missing. {AGAIN}")
    weights = _weight_files(folder)
    shapes: Shapes = {}
    for file in weights:
        shapes |= _shapes_of(folder, file)
    if not any((folder / name).is_file() for name in TOKENIZER if name != "tokenizer_config.json"):
        raise UsageError(
            f"--check {folder}: the tokenizer is missing: there is no tokenizer.json, nor "
            f"vocab.json and merges.txt. {AGAIN} The weights can be used with another's: "
            "--data.tokenizer openai-community/gpt2, say."
        )
    about, vocabulary = _check_fit(folder, shapes)
    tokens = _check_tokenizer(folder, vocabulary)
    hashed = [file.name for file in weights if file.name in verified]
    size = megabytes(sum(file.stat().st_size for file in weights))
    return [
        f"{folder}: a model, complete.",
        f"  type        {about}",
        f"  weights     {len(weights)} file{'s' * (len(weights) > 1)}, {size}"
        + (", hashes as when downloaded" if len(hashed) == len(weights) else ""),
        f"  tokenizer   {tokens:,} tokens",
    ]


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    index = folder / (WHOLE + INDEX)
    if index.is_file():
        names = sorted(set(_json(index).get("weight_map", {}).values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UsageError(
                f"--check {folder}: {', '.join(missing[:3])} is missing; {index.name} lists "
                f"{len(names)} files of weights. {AGAIN}"
            )
        return [folder / name for name in names]
    if (folder / PICKLED).is_file() or (folder / (PICKLED + INDEX)).is_file():
        raise UsageError(
            f"--check {folder}: the weights are there only as {PICKLED}, a pickle, which can run "
            f"code when it is read. Fetch the model anew: python -m gpt2_lightning fetch model "
            f"NAME --to DIR takes {WHOLE}, or turns the pickle into it with --allow_pickle."
        )
    raise UsageError(f"--check {folder}: {WHOLE} is missing. {AGAIN}")


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(
            f"--check {file.parent}: {file.name} cannot be read ({error}): it is damaged, or a "
            f"page of a web site was saved in its place. {AGAIN}"
        ) from error
    return found if isinstance(found, dict) else {}


def _shapes_of(folder: Path, file: Path) -> Shapes:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 # no dict
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        whole = _length(file)
        how = (
            f"is cut short: {size:,} of {whole:,} bytes"
            if whole is not None and whole > size
            else f"is damaged ({' '.join(str(error).split())[:200]})"
        )
        raise UsageError(f"--check {folder}: {file.name} {how}. {AGAIN}") from error


def _length(file: Path) -> int | None:
    """Return how long a file's own header says that it is, in bytes; None if that is damaged too.

    The format: 8 bytes of the header's length, the header, the tensors
    (https://huggingface.co/docs/safetensors).
    """
    with suppress(ValueError, KeyError, TypeError, AttributeError, struct.error):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100_000_000:  # more than the format allows
                return None
            header = json.loads(stream.read(length))
        ends = [it["data_offsets"][1] for name, it in header.items() if name != "__metadata__"]
        return 8 + int(length) + max(ends, default=0)
    return None


def _check_fit(folder: Path, shapes: Shapes) -> tuple[str, int]:
    """See that the weights are those of config.json; return the model in words, and its ids."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gpt2_lightning.model.causal_lm import count_parameters, positions_of

    _json(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):  # shapes alone
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise UsageError(
            f"--check {folder}: config.json describes no causal language model "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
    wanted = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{model.base_model_prefix}."
    found = {name if name in wanted else prefix + name: shape for name, shape in shapes.items()}
    there = {id(wanted[name]) for name in found if name in wanted}  # tied weights are stored once
    missing = [name for name, value in wanted.items() if id(value) not in there]
    other = [name for name in wanted if name in found and found[name] != tuple(wanted[name].shape)]
    if missing or other:
        name = (missing or other)[0]
        how = "lack" if missing else "have another shape of"
        raise UsageError(
            f"--check {folder}: the weights {how} {name}: they belong to another config.json. "
            f"{AGAIN}"
        )
    about = (
        f"{config.model_type}, {count_parameters(model):,} parameters, "
        f"{positions_of(model):,} positions"
    )
    return about, int(config.vocab_size)


def _check_tokenizer(folder: Path, vocabulary: int) -> int:
    from gpt2_lightning.data.tokenizer import load_tokenizer

    tokens = len(load_tokenizer(str(folder), flag="--check"))
    if tokens > vocabulary:
        raise UsageError(
            f"--check {folder}: the tokenizer has {tokens:,} tokens and the model {vocabulary:,}: "
            f"it belongs to another model. {AGAIN}"
        )
    return tokens
