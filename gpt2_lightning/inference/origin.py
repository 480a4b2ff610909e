"""Origin: where a model's weights are, and what is known of its training."""

import logging
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from gpt2_lightning.data.sources import HUB_ID
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.checkpoint import (
    best_checkpoint,
    best_state,
    facts_of,
    hf_record,
    last_checkpoint,
    read_checkpoint,
    read_settings,
)
from gpt2_lightning.inference.run_folder import run_of
from gpt2_lightning.inference.sharded import is_sharded
from gpt2_lightning.model.sampling import SamplingOptions

Which = Literal["best", "last"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What was asked for, resolved; what is not known is empty.

    Attributes:
        weights: What `load_model` takes: a checkpoint, an HF folder or a Hub id.
        run: The run folder that it belongs to.
        settings: By group (``trainer``, ``model``, ``data``) and name.
        facts: ``facts.json``: what only the run itself knew.
        step: Optimizer steps behind a checkpoint.
        figures: Of the run's validation at this step, or the last one before it.
        chosen: ``monitor``, ``mode`` and ``value`` of a checkpoint that was kept as the best.
    """

    weights: str
    run: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def of_training(self) -> bool:
        """Whether anything is known of its training."""
        return bool(self.settings)

    def setting(self, path: str) -> Any:
        """Return a setting by its flag, such as ``data.cleaning``; None where it is not known."""
        value: Any = self.settings
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def fact(self, path: str) -> Any:
        """Return a fact by its names, such as ``steps.blocks``; None where it is not known."""
        value: Any = self.facts
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def sampling(self) -> SamplingOptions | None:
        """How the run drew its samples."""
        found = self.setting("model.sampling")
        if not isinstance(found, dict):
            return None
        names = {name.name for name in fields(SamplingOptions)}
        return SamplingOptions(**{key: value for key, value in found.items() if key in names})


def find_origin(name: str, which: Which) -> Origin:
    """Resolve ``--model`` to weights, and gather what is known of their training.

    Args:
        name: A run folder, a checkpoint (one file, or sharded), an HF folder or a Hub id.
        which: Checkpoint of a run folder.

    Raises:
        UsageError: If a run folder has no such checkpoint, or ``which`` means nothing here.
    """
    path = Path(name).expanduser()
    in_hf_format = (path / "config.json").is_file()
    if path.is_dir() and not in_hf_format and not is_sharded(path):
        return _of_run(path, which)
    if which == "last":
        raise UsageError(
            f"--which last: --model {name} is no run folder. Leave --which out, or give the run "
            "folder."
        )
    if path.is_file() or is_sharded(path):
        return _of_checkpoint(path, run_of(path))
    if in_hf_format and path.name == "hf":
        return _of_hf_folder(path, path.parent)
    return Origin(str(path) if path.is_dir() else name)


def _of_run(run: Path, which: Which) -> Origin:
    if which == "last":
        if (last := last_checkpoint(run)) is None:
            raise UsageError(f"--which last: {run} has no checkpoints/last.ckpt.")
        return _of_checkpoint(last, run)
    best = best_checkpoint(run)
    if best is not None and best.name != "last.ckpt":
        return _of_checkpoint(best, run)
    if (run / "hf" / "config.json").is_file():
        return _of_hf_folder(run / "hf", run)
    if best is not None:
        return _of_checkpoint(best, run)
    raise UsageError(
        f"--model {run}: neither a model in Hugging Face format (config.json) nor a run folder "
        "with hf/ or checkpoints/."
    )


def _of_checkpoint(file: Path, run: Path | None) -> Origin:
    checkpoint = read_checkpoint(file)
    kept = checkpoint.get("trainer_settings") or {}  # by flag
    settings = {
        "trainer": {flag.removeprefix("--trainer."): value for flag, value in kept.items()},
        "model": checkpoint.get("hyper_parameters") or {},
        "data": checkpoint.get("datamodule_hyper_parameters") or {},
    }
    facts = facts_of(run)
    states = checkpoint.get("callbacks") or {}
    local = (states.get("Facts") or facts).get("local")
    best = (best_state(checkpoint) or {}).get("best") or facts.get("best") or {}
    step = checkpoint.get("global_step")
    of_best = best.get("step") == step and None not in (best.get("monitor"), best.get("value"))
    figures = (states.get("Outcome") or {}).get("last") or {}
    settings = _settings(run) | {name: group for name, group in settings.items() if group}
    return Origin(
        weights=str(file),
        run=run,
        settings=_with_paths(settings, local),
        facts=facts,
        step=step,
        figures=figures
        or (best.get("figures") or {} if of_best else {}),  # weights alone bring none
        chosen=best if of_best else {},
    )


def _of_hf_folder(folder: Path, run: Path) -> Origin:
    facts = facts_of(run)
    outcome, best = facts.get("outcome") or {}, facts.get("best") or {}
    # earlier versions noted the figures of the best beside the others
    figures = best.get("figures") or outcome.get("best") or outcome.get("last") or {}
    settings = _with_paths(_settings(run), facts.get("local"))
    record = hf_record(folder)
    if record is not None and best and record["step"] != best.get("step"):  # the run went on since
        return Origin(str(folder), run, settings, facts, record["step"])
    known = None not in (best.get("monitor"), best.get("value"))
    return Origin(
        str(folder), run, settings, facts, best.get("step"), figures, best if known else {}
    )


def _settings(run: Path | None) -> dict[str, Any]:
    file = None if run is None else run / "config.yaml"
    if file is None or not file.is_file():
        return {}
    try:
        return read_settings(file)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s) and is left out.", file, error)
        return {}


def _with_paths(settings: dict[str, Any], local: list[str] | None) -> dict[str, Any]:
    """Return settings in which a name that was a path where the run began looks like one."""
    for flag in local or []:
        group, _, name = flag.partition(".")
        given = (settings.get(group) or {}).get(name)
        if given and not Path(given).is_absolute():
            settings = settings | {group: settings[group] | {name: f"./{given}"}}
    return settings


def hub_id(name: str | None) -> str | None:
    """Return a name if it is one of the Hub, and not of a file or folder here."""
    if name is None or name == "builtin" or Path(name).expanduser().exists():
        return None
    bare = re.fullmatch(r"\w[\w-]*", name)  # such as gpt2
    has_suffix = re.search(r"\.(txt|raw|tokens|jsonl?|csv|parquet|arrow|ckpt)$", name)
    hub = HUB_ID.fullmatch(name) and name[0] not in ".-" and not has_suffix
    return name if bare or hub else None


def public_name(name: str) -> str:
    """Return a name without the folders of this machine: a Hub id, or a path's last part."""
    return hub_id(name) or re.split(r"[\\/]", name.rstrip("\\/"))[-1] or "a folder"
