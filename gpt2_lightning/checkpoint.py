"""One checkpoint, whole or in shards: how it comes onto the disk, and how it is read."""

import logging
import pickle
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from gpt2_lightning.data.token_store import store_name
from gpt2_lightning.data.tokenizer import save_tokenizer_files
from gpt2_lightning.errors import UsageError, reason
from gpt2_lightning.model.gpt2 import from_config
from gpt2_lightning.storage import whole_file
from gpt2_lightning.untrusted import is_inside, misfit, read_json, read_yaml

log = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own writing goes through the temporary folder, and is a copy where that is on
    another file system: a full disk or SIGKILL leaves half a checkpoint under its final name.

    Args:
        behind: The plugin that lets this one save behind the training. Before a checkpoint is
            removed, it has to have saved the one that takes its place.
    """

    def __init__(self, behind: AsyncCheckpointIO | None = None) -> None:
        self.behind = behind

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; what is not on a disk here is left to Lightning.

        Args:
            checkpoint: Its content.
            path: Where.
            storage_options: Of other storage.

        Raises:
            OSError: If the disk refuses; what was there before is untouched.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            # a last.ckpt that is a link to the best (--checkpoint.save_last link) is no way to it
            with whole_file(Path(path), replace_link=True) as stream:
                torch.save(checkpoint, stream)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, once the one that was saved after it is whole."""
        if self.behind is not None:
            self.behind.teardown()  # waits, and raises what went wrong; it can save again then
        super().remove_checkpoint(path)


def give_to_async(plugins: Any) -> None:
    """Let an `AsyncCheckpointIO` among a user's plugins write whole checkpoints.

    Args:
        plugins: None, a plugin or a list of them, before the trainer has them.
    """
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        if isinstance(plugin, AsyncCheckpointIO) and plugin.checkpoint_io is None:
            plugin.checkpoint_io = WholeCheckpoints(plugin)


def give_to_trainer(trainer: Trainer) -> None:
    """Let a trainer write whole checkpoints, unless the user gave it a plugin for that.

    Sharded checkpoints go past every such plugin, and stay Lightning's.
    """
    found: CheckpointIO = trainer.strategy.checkpoint_io
    if type(found) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()


REST = "meta.pt"  # Lightning's name for the part of a checkpoint that is no shard

WEIGHTS = ("model.", "state_dict.")  # before the weights' keys: FSDP, ModelParallel (FSDP2)

# what torch's own description of the shards consists of
PLAIN = {
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # as Python 3.13 calls it
    ("pathlib", "WindowsPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}


def is_sharded(path: Path) -> bool:
    """Tell whether a path is such a folder."""
    return (path / REST).is_file()


def read_sharded(folder: Path) -> dict[str, Any]:
    """Put a checkpoint together, without its optimizer's state and without unpickling code.

    Args:
        folder: Written by Lightning's ``FSDPStrategy`` or ``ModelParallelStrategy`` with sharded
            state, from any number of processes.

    Returns:
        The checkpoint as if it had been saved in one file.

    Raises:
        UsageError: If a part is missing or damaged.

    Reference:
        https://lightning.ai/docs/pytorch/stable/common/checkpointing_expert.html
    """
    try:
        checkpoint: dict[str, Any] = torch.load(
            folder / REST, map_location="cpu", weights_only=True
        )
        reader = _Reader(folder)
        found = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and key.startswith(WEIGHTS)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it says that this process is alone
            load(found, storage_reader=reader, no_dist=True)
    except Exception as error:
        raise UsageError(
            f"{folder}: cannot be read as a sharded checkpoint ({reason(error)}). It needs "
            f"{REST}, .metadata and every __*.distcp that the run wrote."
        ) from error
    checkpoint["state_dict"] = {key.partition(".")[2]: value for key, value in found.items()}
    return checkpoint


class _Reader(FileSystemReader):
    """torch's reader, which trusts no more of the shards' description than it consists of."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as stream:
            metadata: Metadata = _Unpickler(stream).load()
        for part in (metadata.storage_data or {}).values():
            if not is_inside(Path(self.path), str(part.relative_path)):
                raise ValueError(f".metadata names {part.relative_path}, which lies elsewhere")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f".metadata holds {module}.{name}, which it may not")
        return super().find_class(module, name)


WEIGHTS_PREFIX = "model."  # of the language model's keys in GPT2Module's state dict

DATA_KEY = "WikiTextDataModule"  # under which Lightning keeps the datamodule's state

BEST_KEY = "RunCheckpoint"  # under which the callbacks' states say which checkpoint is the best

# What others may have written, by the names that are read: types as `misfit` takes them.
NUMBER = (int, float)

SETTINGS: dict[str, Any] = {
    "seed_everything": int,
    "trainer": {"gradient_clip_val": NUMBER},
    "model": {
        **dict.fromkeys(("pretrained", "revision", "schedule"), str),
        **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "seed"), NUMBER),
        **dict.fromkeys(("dropout", "attention_dropout"), NUMBER),
        "betas": [NUMBER],
        "sampling": {"stop": [str], "*": NUMBER},
    },
    "data": {
        **dict.fromkeys(("block_size", "batch_size", "vocab_size", "seed"), int),
        **dict.fromkeys(("source", "subset", "revision", "text_column", "documents"), str),
        **dict.fromkeys(("validation_source", "test_source", "cleaning", "blocks"), str),
    },
}

BEST: dict[str, Any] = {
    **dict.fromkeys(("file", "monitor", "mode"), str),
    "step": int,
    "value": NUMBER,
    "figures": {"*": NUMBER},
}

FACTS: dict[str, Any] = {
    **dict.fromkeys(("started", "ended", "tokenizer", "no_bits_per_byte"), str),
    **dict.fromkeys(("seconds", "xz_bits_per_byte"), NUMBER),
    "commands": [[str]],
    "local": [str],
    "versions": {"*": str},
    "machine": {"system": str, "cores": int, "gpus": [str]},
    "trainer": {"devices": int, "nodes": int, "processes": int, "*": str},
    "model": {"type": str, "*": int},
    "steps": {"*": int},
    "data": {"*": {"*": NUMBER}},
    "cleaning": {"name": str, "lossless": bool},
    "outcome": {"*": {"*": NUMBER}},
    "best": BEST,
}

CHECKPOINT: dict[str, Any] = {
    "hf_config": dict,
    "state_dict": {"*": torch.Tensor},
    DATA_KEY: {"tokenizer_files": {"*": str}},
    "hyper_parameters": SETTINGS["model"],
    "datamodule_hyper_parameters": SETTINGS["data"],
    "trainer_settings": dict,
    "global_step": int,
    "epoch": int,
    "loops": {"*": dict},
    "optimizer_states": [dict],
    "lr_schedulers": [dict],
    "callbacks": {
        BEST_KEY: {
            "best_model_path": str,
            "best_k_models": {"*": (int, float, torch.Tensor)},
            "monitor": str,
            "mode": str,
            "best": BEST,
        },
        "Facts": {"local": [str]},
        "Outcome": {"*": {"*": NUMBER}},
    },
}

NEEDED = ("hf_config", "state_dict", DATA_KEY)


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint's end is there, which is written last; its middle is not read."""
    if checkpoint.is_dir():
        whole = is_sharded(checkpoint) and (checkpoint / ".metadata").is_file()
        return whole and zipfile.is_zipfile(checkpoint / REST)
    return zipfile.is_zipfile(checkpoint)


def best_state(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state of the run's own ModelCheckpoint; None where a checkpoint has none."""
    states: dict[str, Any] = checkpoint.get("callbacks") or {}
    if states.get(BEST_KEY):
        found: dict[str, Any] = states[BEST_KEY]
        return found
    # earlier versions had Lightning's own class, after those that the user had added
    earlier = [state for key, state in states.items() if key.startswith("ModelCheckpoint")]
    return earlier[-1] if earlier else None


def extreme_of(best: dict[str, Any]) -> str:
    """Say which number chose a checkpoint (``RunCheckpoint.best``), such as: lowest val/loss."""
    return f"{'highest' if best.get('mode') == 'max' else 'lowest'} {best['monitor']}"


def read_facts(file: Path) -> dict[str, Any]:
    """Read a ``facts.json``.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds what no run writes.
    """
    facts = read_json(file)
    if (wrong := misfit(facts, FACTS)) is not None or not isinstance(facts, dict):
        raise ValueError(f"it holds no facts of a run: {wrong or 'nothing'}")
    return facts


def read_settings(file: Path) -> dict[str, Any]:
    """Read a run's ``config.yaml`` as data, by group and name.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it holds what is no setting.
    """
    settings = read_yaml(file)
    if (wrong := misfit(settings, SETTINGS)) is not None or not isinstance(settings, dict):
        raise ValueError(f"it holds no settings of a run: {wrong or 'nothing'}")
    return settings


def written_at(file: Path) -> float:
    """Return when a checkpoint was written, in seconds since 1970."""
    with suppress(FileNotFoundError):  # a run that is under way has removed it meanwhile
        return file.lstat().st_mtime  # a link may lead nowhere
    return 0.0


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling code; tensors stay on the disk until used.

    Args:
        file: A ``.ckpt``; or a folder, where its state is sharded.

    Raises:
        UsageError: If it is damaged or not one of this package's checkpoints.
    """
    checkpoint = read_sharded(file) if is_sharded(file) else _read_file(file)
    wrong = misfit(checkpoint, CHECKPOINT)
    if wrong is None and (missing := [name for name in NEEDED if checkpoint.get(name) is None]):
        wrong = f"it holds no {missing[0]}"
    elif wrong is None and checkpoint[DATA_KEY].get("tokenizer_files") is None:
        wrong = "it holds no tokenizer_files"
    if wrong is not None:
        raise UsageError(f"{file}: not a checkpoint of gpt2_lightning ({wrong}).")
    return checkpoint


def step_of(file: Path) -> int:
    """Return the optimizer step that a checkpoint holds."""
    return int(read_notes(file).get("global_step") or 0)


def read_notes(file: Path) -> dict[str, Any]:
    """Read a checkpoint without its shards and without reading its tensors, for what it notes."""
    try:
        content: dict[str, Any] = torch.load(
            file / REST if is_sharded(file) else file,
            map_location="cpu",
            weights_only=True,
            mmap=True,
        )
    except Exception:  # damaged: this says how
        return read_checkpoint(file)
    # of what no run writes, too
    return content if misfit(content, CHECKPOINT) is None else read_checkpoint(file)


def _read_file(file: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(file):
        raise UsageError(f"{file}: it is no checkpoint, or was cut short.{_instead(file)}")
    try:
        with zipfile.ZipFile(file) as content:
            damaged = content.testzip()  # torch itself compares no checksum
    except (zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{file}: it is damaged ({error}).{_instead(file)}") from error
    if damaged:
        raise UsageError(
            f"{file}: it is damaged: the checksum of {damaged} is wrong.{_instead(file)}"
        )
    try:
        checkpoint: dict[str, Any] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )
    except Exception as error:
        raise UsageError(f"{file}: cannot be read as a checkpoint ({reason(error)}).") from error
    return checkpoint


def _instead(file: Path) -> str:
    """Name another checkpoint of the same run, for a message on one that cannot be used."""
    others = [it for it in file.parent.glob("*.ckpt") if it != file and is_whole(it)]
    return f" {max(others, key=written_at)} is whole." if others else ""


def weights_of(checkpoint: dict[str, Any], said: str) -> dict[str, torch.Tensor]:
    """Return the language model's weights, once they are known to be those of its configuration.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        said: How it was asked for, for messages.

    Raises:
        UsageError: If they are not; nothing as large as the configuration says was built.
    """
    weights = {
        key.removeprefix(WEIGHTS_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(WEIGHTS_PREFIX)
    }
    try:
        with torch.device("meta"):
            # eager: every type of model has it
            wanted = from_config(checkpoint["hf_config"], attention="eager").state_dict()
    except UsageError:
        raise
    except Exception as error:  # transformers and torch raise what they please
        raise UsageError(
            f"{said}: its hf_config describes no model ({' '.join(str(error).split())[:200]})."
        ) from error
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in wanted.items()}
    if shapes != expected:
        names = sorted(shapes.keys() | expected.keys())
        name = next(it for it in names if shapes.get(it) != expected.get(it))
        raise UsageError(
            f"{said}: its weights are not those of its hf_config: {name} has the shape "
            f"{shapes.get(name)} and should have {expected.get(name)}."
        )
    return weights


def write_tokenizer_of(checkpoint: dict[str, Any], cache: Path) -> Path:
    """Write the tokenizer that a checkpoint carries into a cache; return its folder."""
    files = checkpoint[DATA_KEY]["tokenizer_files"]
    folder = cache / "tokenizers" / store_name(files)
    save_tokenizer_files(files, folder)
    return folder
