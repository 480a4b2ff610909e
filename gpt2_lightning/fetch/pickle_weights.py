"""Converts pickled weights to safetensors; nothing but tensors is unpickled."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gpt2_lightning.errors import UsageError, one_line, reason
from gpt2_lightning.pretrained import INDEX, PICKLED, listed_shards, load_config
from gpt2_lightning.storage import whole_folder


def convert(folder: Path) -> None:
    """Convert the pickled weights of a model folder to safetensors, and delete the pickle.

    Every tensor is compared with the pickle's. Weights that the configuration ties, such as GPT-2's
    head and embedding, must be equal, and are stored once.

    Args:
        folder: With config.json and pytorch_model.bin, whole or in shards.

    Raises:
        UsageError: If the pickle holds more than tensors, is damaged, or does not fit config.json.
    """
    read, files = _read(folder)
    model, missing = _load(folder, read, files[0].name)
    if missing:
        raise UsageError(
            f"{files[0].name}: it does not fit config.json: it has no {sorted(missing)[0]}."
        )
    written = model.state_dict()
    prefix = model.base_model_prefix + "."
    known = {name if name in written else prefix + name: tensor for name, tensor in read.items()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    same = all(torch.equal(written[name], known[name]) for name in known if name in written)
    if not same or (model.config.tie_word_embeddings and head.weight is not embedding.weight):
        raise UsageError(
            f"{files[0].name}: config.json ties the head to the embedding, and they differ. One of "
            "the two files is wrong; use another source of the model."
        )
    converted = folder / ".converted"
    with whole_folder(converted, replace=True) as beside:  # config.json stays the hub's own
        model.save_pretrained(beside)
    for file in converted.glob("*.safetensors*"):
        file.chmod((folder / "config.json").stat().st_mode)
        os.replace(file, folder / file.name)
    shutil.rmtree(converted)
    for file in files:
        file.unlink()


def _load(
    folder: Path, weights: dict[str, torch.Tensor], name: str
) -> tuple[PreTrainedModel, set[str]]:
    """Load weights as transformers does, old names included; return the missing names, too."""
    try:
        config = load_config(str(folder), said=str(folder))
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
        model, loading = kind.from_pretrained(
            None,
            config=config,
            trust_remote_code=False,
            state_dict=dict(weights),
            dtype=next(iter(weights.values())).dtype,
            output_loading_info=True,
        )
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{name}: it does not fit config.json ({one_line(error)}).") from error
    return model, set(loading["missing_keys"])


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    files = [folder / PICKLED]
    index = folder / (PICKLED + INDEX)
    if index.is_file():
        files = [folder / name for name in listed_shards(folder, index, index.name)]
    read: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            part: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
        except Exception as error:
            raise UsageError(
                f"{file.name}: it cannot be read as weights ({reason(error)}). It was not used."
            ) from error
        tensors = part.values() if isinstance(part, dict) else []
        if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors):
            raise UsageError(f"{file.name}: it contains other things than a model's weights.")
        read |= part
    return read, [*files, *([index] if index.is_file() else [])]
