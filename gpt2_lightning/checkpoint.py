"""One checkpoint, whole or in shards: its names and format, and how it is read."""

import io
import logging
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from gpt2_lightning.errors import UsageError, reason
from gpt2_lightning.untrusted import is_inside, misfit

if TYPE_CHECKING:  # generate reads checkpoints, too, and needs none of Lightning
    from lightning.pytorch import Trainer

log = logging.getLogger(__name__)

# The names of our entries in a checkpoint, beside Lightning's. Files keep those that they were
# written with: where a name changes, the format takes a new number, and `upgrade` a step.
FORMAT = 2

# the states of callbacks
BEST_KEY = "run.best"  # RunCheckpoint: which checkpoint is the best
EARLY_STOPPING_KEY = "run.early_stopping"  # EarlyStop: the best value, and validations since
FACTS_KEY = "run.facts"  # Facts: which names are paths
FIGURES_KEY = "run.figures"  # RunSummary: the newest validation, and that before training

# what training cannot change on the way, and the flag that sets it
TRAINER_FLAGS = {
    "accumulate_grad_batches": "--trainer.accumulate_grad_batches",
    "processes": "--trainer.devices (x num_nodes)",
    "precision": "--trainer.precision",
    "gradient_clip_val": "--trainer.gradient_clip_val",
    "gradient_clip_algorithm": "--trainer.gradient_clip_algorithm",
    "limit_train_batches": "--trainer.limit_train_batches",
    "overfit_batches": "--trainer.overfit_batches",
    "schedule_steps": "--trainer.max_epochs or max_steps (steps of the schedule)",
}

# The names of format 1: those of classes, and of the flags above.
DATA_KEY_1 = "WikiTextDataModule"
CALLBACK_KEYS_1 = {"RunCheckpoint": BEST_KEY, "Facts": FACTS_KEY, "Outcome": FIGURES_KEY}

# What others may have written, by the names that are read: types as `misfit` takes them.
NUMBER = (int, float)

SETTINGS: dict[str, Any] = {
    "seed_everything": int,
    "trainer": {"gradient_clip_val": NUMBER},
    "model": {
        **dict.fromkeys(("pretrained", "revision", "optimizer", "schedule", "averaging"), str),
        **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "seed"), NUMBER),
        **dict.fromkeys(("dropout", "attention_dropout", "decay_share"), NUMBER),
        "schedule_changes": [[int]],
        "betas": [NUMBER],
        "sampling": {"stop": [str], "*": NUMBER},
        "lora": {"rank": int, "quantize": str, "*": NUMBER},
    },
    "data": {
        **dict.fromkeys(("block_size", "batch_size", "vocab_size", "seed"), int),
        **dict.fromkeys(
            ("source", "subset", "revision", "text_column", "documents", "add_tokens"), str
        ),
        **dict.fromkeys(("validation_source", "test_source", "cleaning", "blocks", "attend"), str),
    },
}

BEST: dict[str, Any] = {
    **dict.fromkeys(("file", "monitor", "mode"), str),
    "step": int,
    "value": NUMBER,
    "figures": {"*": NUMBER},
}

FACTS: dict[str, Any] = {
    **dict.fromkeys(("started", "ended", "ended_by", "tokenizer", "no_bits_per_byte"), str),
    **dict.fromkeys(("seconds", "xz_bits_per_byte"), NUMBER),
    "commands": [[str]],
    "trackers": [[str]],
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
    "tokenizer_files": {"*": str},
    "hyper_parameters": SETTINGS["model"],
    "datamodule_hyper_parameters": SETTINGS["data"],
    "trainer_settings": dict,
    **dict.fromkeys(("format", "global_step", "epoch"), int),
    **dict.fromkeys(("skipped_steps", "skipped_in_a_row"), int),
    "schedule_changes": [[int]],
    "base": str,  # of a LoRA adapter: the SHA-256 of the weights that it belongs to
    "averaging": {"holds": str, "steps": int, "other": {"*": torch.Tensor}},
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
        EARLY_STOPPING_KEY: {"wait_count": int, "best": NUMBER, "*": str},
        FACTS_KEY: {"local": [str]},
        FIGURES_KEY: {"*": {"*": NUMBER}},
    },
}

NEEDED = (
    *("hf_config", "state_dict", "tokenizer_files"),
    *("trainer_settings", "skipped_steps", "skipped_in_a_row"),
)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling code; tensors stay on the disk until used.

    Args:
        file: A ``.ckpt``; or a folder, where its state is sharded.

    Raises:
        UsageError: If it is damaged or not one of this package's checkpoints.
    """
    checkpoint = read_sharded(file) if is_sharded(file) else _read_file(file)
    upgrade(checkpoint, str(file))
    wrong = misfit(checkpoint, CHECKPOINT)
    if wrong is None and (missing := [name for name in NEEDED if checkpoint.get(name) is None]):
        wrong = f"it holds no {missing[0]}"
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
        upgrade(content, str(file))
    except Exception:  # damaged, or of another format: this says how
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


def upgrade(checkpoint: dict[str, Any], name: str = "--ckpt_path") -> None:
    """Give a checkpoint of an earlier format the present names, in place.

    Args:
        checkpoint: What the file holds.
        name: What to call it in a message.

    Raises:
        UsageError: If it is of a later format, or of none.
    """
    form = {"format": int, DATA_KEY_1: dict, "callbacks": {"*": dict}, "trainer_settings": dict}
    if (wrong := misfit(checkpoint, form)) is not None:
        raise UsageError(f"{name}: not a checkpoint of gpt2_lightning ({wrong}).")
    found = checkpoint.get("format") or 1
    if found > FORMAT:
        raise UsageError(
            f"{name}: its format is {found}, that of a later gpt2-lightning; this one reads up to "
            f"{FORMAT}. A newer gpt2-lightning would read it."
        )
    if found == 1:
        checkpoint |= _of_format_1(checkpoint)
    checkpoint["format"] = FORMAT


def _of_format_1(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what format 2 has elsewhere than format 1, which said no number."""
    kept = checkpoint.get("trainer_settings") or {}
    found: dict[str, Any] = {
        "tokenizer_files": (checkpoint.get(DATA_KEY_1) or {}).get("tokenizer_files"),
        "trainer_settings": {
            name: kept[flag] for name, flag in TRAINER_FLAGS.items() if flag in kept
        },
        "skipped_steps": checkpoint.get("skipped_steps", 0),  # at first, none was left out
        "skipped_in_a_row": checkpoint.get("skipped_in_a_row", 0),
    }
    if states := checkpoint.get("callbacks"):
        found["callbacks"] = {CALLBACK_KEYS_1.get(key, key): it for key, it in states.items()}
        # before RunCheckpoint, the run's own was Lightning's class, after those of the user
        earlier = [key for key in states if key.startswith("ModelCheckpoint")]
        if not states.get("RunCheckpoint") and earlier:
            state = found["callbacks"].pop(earlier[-1])
            mode = "max" if "'mode': 'max'" in earlier[-1] else "min"
            found["callbacks"][BEST_KEY] = {"mode": mode, "best": None} | state
    return found


def trainer_settings(trainer: "Trainer", schedule_steps: int | None) -> dict[str, Any]:
    """Return these settings by their names in `TRAINER_FLAGS`, as plain values.

    Args:
        trainer: The trainer.
        schedule_steps: Optimizer steps of the learning rate's schedule, if they are known.
    """
    clipping = trainer.gradient_clip_algorithm
    return {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "processes": trainer.world_size,
        "precision": trainer.precision,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": clipping and str(clipping.value),
        "limit_train_batches": trainer.limit_train_batches,
        "overfit_batches": cast(Any, trainer).overfit_batches,
        "schedule_steps": schedule_steps,
    }


def take_up(checkpoint: dict[str, Any], trainer: "Trainer", now: dict[str, Any]) -> None:
    """See that a run that goes on takes the steps that it would have taken, and find its place.

    Args:
        checkpoint: Its content, changed in place where this run counts other micro-batches.
        trainer: The trainer that goes on.
        now: Its `trainer_settings`.

    Raises:
        UsageError: If one of them differs from the checkpoint's.
    """
    before = checkpoint["trainer_settings"]
    refuse_changes(before, now)
    accumulate = now["accumulate_grad_batches"]
    counted = before.get("accumulate_grad_batches", accumulate)
    rescale_position(checkpoint, counted, accumulate)
    interval = trainer.val_check_interval
    if counted != accumulate and isinstance(interval, int):
        log.warning(
            "--trainer.val_check_interval %d counts micro-batches of one process, so validations "
            "now come every %d steps.",
            interval,
            interval // accumulate,
        )


def refuse_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """See that a run that goes on takes the steps that it would have taken.

    Args:
        before: The checkpoint's settings.
        now: Those of the trainer that goes on.

    Raises:
        UsageError: If one differs.
    """
    dealt = ("accumulate_grad_batches", "processes")
    if all(name in before for name in dealt) and any(before[name] != now[name] for name in dealt):
        _refuse_other_batches(before, now)
    for name, flag in TRAINER_FLAGS.items():
        if name in before and name not in dealt and before[name] != now[name]:
            raise UsageError(
                f"{flag}: the checkpoint was trained with {before[name]}, now it is {now[name]}, "
                "and going on so would be another run. Leave the flag as it was, or begin a new "
                "run with these weights: --model.pretrained RUN, without --ckpt_path."
            )


def _refuse_other_batches(before: dict[str, Any], now: dict[str, Any]) -> None:
    """See that another number of processes takes the same blocks in a step."""
    accumulate, processes = before["accumulate_grad_batches"], before["processes"]
    batches, here = accumulate * processes, now["processes"]
    if now["limit_train_batches"] != 1.0:
        raise UsageError(
            "--trainer.devices (x num_nodes): the checkpoint's run has "
            f"--trainer.limit_train_batches {before['limit_train_batches']}, which counts "
            f"micro-batches of one process. {processes} processes would work, with "
            f"--trainer.accumulate_grad_batches {accumulate}."
        )
    if batches != now["accumulate_grad_batches"] * here:
        now_each = now["accumulate_grad_batches"]
        remedy = f"--trainer.accumulate_grad_batches {batches // here}"
        if batches % here:
            remedy = f"--trainer.devices (x num_nodes) {processes}, as before,"
        raise UsageError(
            f"--trainer.accumulate_grad_batches {now_each}: a step of the checkpoint's run takes "
            f"{batches} micro-batches (processes x accumulation: {processes} x {accumulate}), and "
            f"{here} x {now_each} would be another run. {remedy} would work."
        )


def rescale_position(checkpoint: dict[str, Any], before: int, now: int) -> None:
    """Express the position in the data in other micro-batches, in place.

    A step's blocks are dealt out over processes and micro-batches. With another number of
    processes a process takes more or fewer micro-batches in a step, and the same steps lie at
    other counts.

    Args:
        checkpoint: Whole; checkpoints are saved between steps.
        before: Micro-batches of a process in a step, as the checkpoint counts.
        now: The same, as it is to count.
    """
    if before == now:
        return
    loop = checkpoint["loops"]["fit_loop"]
    for counts in (loop["epoch_loop.batch_progress"][name] for name in ("total", "current")):
        counts.update({name: count // before * now for name, count in counts.items()})
    for loader in loop["state_dict"]["combined_loader"]:
        loader["position"] = loader["position"] // before * now


def state_of(checkpoint: dict[str, Any], key: str) -> dict[str, Any]:
    """Return what a callback of the run noted; nothing where a checkpoint has weights alone.

    Args:
        checkpoint: As `read_checkpoint` or `read_notes` returns it.
        key: ``BEST_KEY``, ``FACTS_KEY`` or ``FIGURES_KEY``.
    """
    return (checkpoint.get("callbacks") or {}).get(key) or {}


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint's end is there, which is written last; its middle is not read."""
    if checkpoint.is_dir():
        whole = is_sharded(checkpoint) and (checkpoint / ".metadata").is_file()
        return whole and zipfile.is_zipfile(checkpoint / REST)
    return zipfile.is_zipfile(checkpoint)


def extreme_of(best: dict[str, Any]) -> str:
    """Say which number chose a checkpoint (``RunCheckpoint.best``), such as: lowest val/loss."""
    return f"{'highest' if best.get('mode') == 'max' else 'lowest'} {best['monitor']}"


def written_at(file: Path) -> float:
    """Return when a checkpoint was written, in seconds since 1970."""
    with suppress(FileNotFoundError):  # a run that is under way has removed it meanwhile
        return file.lstat().st_mtime  # a link may lead nowhere
    return 0.0


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
    with _reading(folder):
        checkpoint: dict[str, Any] = torch.load(
            folder / REST, map_location="cpu", weights_only=True
        )
        entries = _Reader(folder).read_metadata().state_dict_metadata
    found = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata) and key.startswith(WEIGHTS)
    }
    load_shards(found, folder, alone=True)
    checkpoint["state_dict"] = {key.partition(".")[2]: value for key, value in found.items()}
    return checkpoint


def load_shards(wanted: dict[str, Any], folder: Path, *, alone: bool = False) -> None:
    """Read what is wanted of a sharded checkpoint, in place, without unpickling code.

    Args:
        wanted: Tensors, sharded or whole, and plain values, by the checkpoint's names.
        folder: The checkpoint.
        alone: Whether this process reads for itself; else all ranks call it.

    Raises:
        UsageError: If a part is missing or damaged.
    """
    with _reading(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that this process is alone
        load(wanted, storage_reader=_Reader(folder), planner=_Planner(), no_dist=alone)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:  # torch's is a BaseException
        failures = error.failures if isinstance(error, CheckpointException) else {}
        first = next((it for it, _ in failures.values()), error)
        raise UsageError(
            f"{folder}: cannot be read as a sharded checkpoint ({reason(first)}). It needs "
            f"{REST}, .metadata and every __*.distcp that the run wrote."
        ) from error


class _Planner(DefaultLoadPlanner):
    """torch's planner, which unpickles plain values and no others: an optimizer's numbers."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # refuses all else
        value.seek(0)
        super().load_bytes(read_item, value)


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
