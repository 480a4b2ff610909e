"""Checkpoints whose weights lie in shards, as FSDP's ``sharded`` state: a folder, read as one."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from gpt2_lightning.errors import UsageError
from gpt2_lightning.hub_errors import reason
from gpt2_lightning.untrusted import is_inside

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
