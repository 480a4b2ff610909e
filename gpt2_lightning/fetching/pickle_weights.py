"""Weights out of a pickle: tensors and nothing else, written as safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.wanted import INDEX, PICKLED, WHOLE


def convert(folder: Path) -> None:
    """Turn the pickled weights of a model folder into safetensors, ties kept, and remove them.

    Every tensor is compared with what was read. Weights that the configuration ties, such as
    GPT-2's head and embedding, have to be equal, and are stored once.

    Args:
        folder: With config.json and pytorch_model.bin, whole or in shards.

    Raises:
        UsageError: If the pickle holds more than tensors, is damaged, or does not fit config.json.
    """
    read, files = _read(folder)
    config = AutoConfig.from_pretrained(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        None,  # type: ignore[arg-type] # its annotation forgets that a state needs no name
        config=config,
        state_dict=dict(read),
        dtype="auto",
        output_loading_info=True,
    )
    model, loading = loaded
    written = model.state_dict()
    prefix = model.base_model_prefix + "."
    known = {name if name in written else prefix + name: tensor for name, tensor in read.items()}
    missing = set(loading["missing_keys"]) | set(loading["mismatched_keys"])
    if missing:
        raise UsageError(
            f"{folder.name}/{files[0].name}: it does not fit config.json: "
            f"{', '.join(sorted(map(str, missing))[:3])} is missing or has another shape."
        )
    for name, tensor in known.items():
        if name in written and not torch.equal(written[name], tensor.to(written[name].dtype)):
            raise UsageError(
                f"{files[0].name}: config.json ties {name} to another weight, and they differ. "
                'Where they are meant to, config.json has to say "tie_word_embeddings": false.'
            )
    model.save_pretrained(folder)
    (folder / WHOLE).chmod((folder / "config.json").stat().st_mode)
    for file in files:
        file.unlink()


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    files = [folder / PICKLED]
    index = folder / (PICKLED + INDEX)
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    read: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            part: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
        except Exception as error:
            raise UsageError(
                f"{file.name}: it holds more than tensors, or is damaged "
                f"({' '.join(str(error).split())[:200]}). It was not used."
            ) from error
        if not isinstance(part, dict) or not all(
            isinstance(value, torch.Tensor) for value in part.values()
        ):
            raise UsageError(f"{file.name}: it holds something else than a model's weights.")
        read |= part
    return read, [*files, *([index] if index.is_file() else [])]
