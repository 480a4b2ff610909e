"""A trained model and its tokenizer, from a run folder, a .ckpt, an HF folder or the Hub."""

import logging
import os
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gpt2_lightning.data.token_store import store_name
from gpt2_lightning.data.tokenizer import load_tokenizer, save_tokenizer_files
from gpt2_lightning.errors import UsageError
from gpt2_lightning.hub_errors import reason
from gpt2_lightning.inference.device import DtypeName, place
from gpt2_lightning.inference.sharded import REST, is_sharded, read_sharded
from gpt2_lightning.inference.text_model import TextModel
from gpt2_lightning.model.causal_lm import check_logits, from_config
from gpt2_lightning.pretrained import (
    check_weights,
    load_config,
    load_weights,
    what_tokenizer_lacks,
)
from gpt2_lightning.storage import scratch_folder
from gpt2_lightning.untrusted import misfit, read_json, read_yaml

WEIGHTS_PREFIX = "model."  # of the language model's keys in GPT2Module's state dict
DATA_KEY = "WikiTextDataModule"  # under which Lightning keeps the datamodule's state
BEST_KEY = "RunCheckpoint"  # under which the callbacks' states say which checkpoint is the best
HF_RECORD = "checkpoint.json"  # in hf/: the checkpoint that it was made from, and its step
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

log = logging.getLogger(__name__)
_told: set[tuple[Path, float]] = set()  # torn checkpoints that were spoken of, with their times


def load(
    name: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: DtypeName | None = None,
) -> TextModel:
    """Load a model and its tokenizer, and bring it onto a device.

    Args:
        name: What `load_model` takes: a run folder, a ``.ckpt``, a folder in Hugging Face format or
            a Hub id.
        revision: Branch, tag or commit on the Hub.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``fp32`` or ``bf16``; null leaves the weights as they are.

    Raises:
        UsageError: If nothing of the kind is found, or the device cannot be used.
    """
    loaded = load_model(name, revision)
    place(loaded.model, device, dtype)
    return loaded


def load_model(name: str, revision: str | None = None, *, flag: str = "--model") -> TextModel:
    """Load a model and its tokenizer.

    Args:
        name: A run folder such as ``lightning_logs/version_3`` (its best model), a ``.ckpt``, a
            folder in Hugging Face format, or a Hub id.
        revision: Branch, tag or commit on the Hub.
        flag: Which named it, for messages.

    Raises:
        UsageError: If nothing of the kind is found, it has no tokenizer, or it is no plain causal
            language model.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not is_sharded(path) and not (path / "config.json").is_file():
        path = _inside_run(path, flag)
    if path.is_file() or is_sharded(path):
        return load_checkpoint(path, flag=flag)
    check_run(name, flag)
    said, where = f"{flag} {name}", str(path) if path.is_dir() else name
    try:
        if path.is_dir():
            check_weights(path, said)
        config = load_config(where, revision, said=said)
        model = load_weights(where, config, revision, dtype="auto")
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{said}: no model was found there ({reason(error)}). "
            "Give a run folder such as lightning_logs/version_0, a .ckpt, a folder in Hugging "
            "Face format, or a Hub id such as openai-community/gpt2."
        ) from error
    check_logits(model.eval(), said)
    tokenizer = load_tokenizer(where, revision, flag=flag)
    if lacking := what_tokenizer_lacks(tokenizer, config):
        log.warning("%s: %s.", said, lacking)
    return TextModel(model, tokenizer)


def _inside_run(run: Path, flag: str) -> Path:
    if (run / "hf" / "config.json").is_file():
        if (newer := newer_than_hf(run)) is None:
            return run / "hf"
        log.warning("%s %s: %s, and is taken.", flag, run, older_hf(run, newer))
        return newer
    if (checkpoint := best_checkpoint(run)) is not None:
        return checkpoint
    if (newest := newest_run(run)) is not None:
        raise UsageError(f"{flag} {run}: it holds runs, of which {newest} is the newest.")
    raise UsageError(
        f"{flag} {run}: neither a model in Hugging Face format (config.json) nor a run folder "
        "with hf/ or checkpoints/."
    )


def newest_run(logs: Path) -> Path | None:
    """Return the run of a folder of runs that wrote a whole checkpoint last, if one did."""
    newest = newest_checkpoint(logs.glob("*/checkpoints"))
    return None if newest is None else newest.parent.parent


def newest_checkpoint(folders: Iterable[Path]) -> Path | None:
    """Return the whole checkpoint of some folders that was written last, if there is one."""
    written = [file for folder in folders for file in folder.glob("*.ckpt")]
    # of those written at once, as best and last are, the last one
    written.sort(key=lambda file: (_written(file), file.name), reverse=True)
    return next((file for file in written if _is_usable(file)), None)


def last_checkpoint(run: Path) -> Path | None:
    """Return a run folder's ``last.ckpt``; where it is torn or missing, the newest whole one."""
    last = run / "checkpoints" / "last.ckpt"
    if last.exists() and _is_usable(last):
        return last
    found = _usable(run)
    if found:
        log.warning("%s is taken in place of last.ckpt.", found[-1])
    return found[-1] if found else None


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint's end is there, which is written last; its middle is not read."""
    if checkpoint.is_dir():
        whole = is_sharded(checkpoint) and (checkpoint / ".metadata").is_file()
        return whole and zipfile.is_zipfile(checkpoint / REST)
    return zipfile.is_zipfile(checkpoint)


def _usable(run: Path) -> list[Path]:
    """Return a run folder's whole checkpoints, the newest last."""
    there = sorted((run / "checkpoints").glob("*.ckpt"), key=_written)
    return [file for file in there if _is_usable(file)]


def _is_usable(file: Path) -> bool:
    """Tell whether a checkpoint is whole; of one that is not, say once that it is passed over."""
    if is_whole(file):
        return True
    if not os.path.lexists(file):  # removed meanwhile, by the run that wrote it
        return False
    if (known := (file, _written(file))) not in _told:
        _told.add(known)
        size = f" ({file.stat().st_size:,} bytes are there)" if file.is_file() else ""
        log.warning("%s was cut short%s and is passed over.", file, size)
    return False


def check_run(name: str, flag: str) -> None:
    """See that a name that looks like a run's is that of one, before a hub is asked for it.

    Raises:
        UsageError: If there is no such run.
    """
    path = Path(name).expanduser()
    if path.name.startswith("version_") and not path.exists():
        newest = newest_run(path.parent)
        there = "there are none there." if newest is None else f"the newest one is {newest}."
        raise UsageError(f"{flag} {name}: there is no such run; {there}")


def best_checkpoint(run: Path) -> Path | None:
    """Return a run folder's best checkpoint, else its last one, if it has any.

    Which one is the best, the run's own ModelCheckpoint has said in the newest checkpoint; where
    that one is torn or gone, the best of the others that it kept.
    """
    usable = _usable(run)
    # --checkpoint.filename may have named them
    found = [file for file in usable if not file.stem.startswith("last")]
    if not found:
        return last_checkpoint(run)
    state = best_state(_unchecked(usable[-1]))
    if state is None:  # weights alone: the facts may know
        known = facts_of(run).get("best") or {}
        return next((file for file in found if file.name == known.get("file")), found[-1])
    ranked = sorted(
        (state.get("best_k_models") or {}).items(),
        key=lambda it: float(it[1]) if state.get("mode", "min") == "min" else -float(it[1]),
    )
    for name in (state.get("best_model_path") or "", *(name for name, _ in ranked)):
        if (file := run / "checkpoints" / Path(name).name) in found:
            return file
    return last_checkpoint(run)


def hf_record(folder: Path) -> dict[str, Any] | None:
    """Return which checkpoint an ``hf/`` was made from; None where that was not noted.

    Returns:
        ``file``, its name, null where none was kept; and ``step``, its optimizer step.
    """
    found: Any = None
    with suppress(OSError, ValueError):
        found = read_json(folder / HF_RECORD)
    fits = misfit(found, {"file": str, "step": int}) is None
    return found if fits and found and {"file", "step"} <= found.keys() else None


def newer_than_hf(run: Path) -> Path | None:
    """Return the best checkpoint of a run whose ``hf/`` was made from an earlier one.

    ``hf/`` is written at a run's end. One that went on and was killed has its earlier ``hf/``.

    Returns:
        The checkpoint; None where ``hf/`` is of it, or nothing tells.
    """
    record, usable = hf_record(run / "hf"), _usable(run)
    if record is None or not usable or (best := best_checkpoint(run)) is None:
        return None
    noted = (best_state(_unchecked(usable[-1])) or {}).get("best_model_path") or str(best)
    file = run / "checkpoints" / Path(noted).name
    same = file.name == record["file"]
    # where that file has been removed since, hf/ is what is left of it
    if same and (file not in usable or step_of(file) == record["step"]):
        return None
    return best


def older_hf(run: Path, newer: Path) -> str:
    """Say that a run's ``hf/`` is older than its best checkpoint, without a stop at the end."""
    record = hf_record(run / "hf") or {}
    return (
        f"hf/ is of step {record.get('step', 0):,}, from before the run went on; its best is now "
        f"{newer.name} of step {step_of(newer):,}"
    )


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


def facts_of(run: Path | None) -> dict[str, Any]:
    """Return the ``facts.json`` of a run folder; nothing where there is none, or it is damaged."""
    file = None if run is None else run / "facts.json"
    if file is None or not file.is_file():
        return {}
    try:
        return read_facts(file)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s) and is left out.", file, error)
        return {}


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


def _written(file: Path) -> float:
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
    return int(_unchecked(file).get("global_step") or 0)


def _unchecked(file: Path) -> dict[str, Any]:
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
    return f" {max(others, key=_written)} is whole." if others else ""


def load_checkpoint(file: Path, *, flag: str = "--model") -> TextModel:
    """Load the model and the tokenizer that a checkpoint carries.

    Args:
        file: A ``.ckpt``; or a folder, where its state is sharded.
        flag: Which named it, for messages.

    Raises:
        UsageError: If it is damaged, not one of this package's, or its logits are not numbers.
    """
    checkpoint = read_checkpoint(file)
    weights = weights_of(checkpoint, f"{flag} {file}")
    model = from_config(checkpoint["hf_config"], attention="sdpa")
    model.load_state_dict(weights)
    check_logits(model.eval(), f"{flag} {file}")
    with scratch_folder() as folder:
        tokenizer = load_tokenizer(str(write_tokenizer_of(checkpoint, folder)))
    return TextModel(model, tokenizer)


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
