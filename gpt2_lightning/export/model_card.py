"""The model card of an exported folder: where its weights come from, and what is known of them."""

import json
import logging
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gpt2_lightning.checkpoint import (
    BEST_KEY,
    FACTS_KEY,
    FIGURES_KEY,
    extreme_of,
    is_sharded,
    read_notes,
    state_of,
)
from gpt2_lightning.data.sources import HUB_ID
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.card import FIGURES
from gpt2_lightning.model.metrics import group
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.run_folder import Run, run_of

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def code(text: Any) -> str:
    """Return text as it is, in code's type."""
    return "`" + str(text).replace("`", "'").replace("\n", " ") + "`"


def number(value: Any) -> str:
    """Return a number to read; nothing for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


Which = Literal["best", "last"]


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
        return _of_run(Run(path), which)
    if which == "last":
        raise UsageError(
            f"--which last: --model {name} is no run folder. Leave --which out, or give the run "
            "folder."
        )
    if path.is_file() or is_sharded(path):
        return _of_checkpoint(path, run_of(path))
    if in_hf_format and path.name == "hf":
        return _of_hf_folder(Run(path.parent))
    return Origin(str(path) if path.is_dir() else name)


def _of_run(run: Run, which: Which) -> Origin:
    if which == "last":
        if (last := run.last_checkpoint()) is None:
            raise UsageError(f"--which last: {run.folder} has no checkpoints/last.ckpt.")
        return _of_checkpoint(last, run)
    best = run.best_checkpoint()
    if best is not None and best.name != "last.ckpt":
        return _of_checkpoint(best, run)
    if (run.hf / "config.json").is_file():
        return _of_hf_folder(run)
    if best is not None:
        return _of_checkpoint(best, run)
    raise UsageError(
        f"--model {run.folder}: neither a model in Hugging Face format (config.json) nor a run "
        "folder with hf/ or checkpoints/."
    )


def _of_checkpoint(file: Path, run: Run | None) -> Origin:
    checkpoint = read_notes(file)  # its weights are read once, by `load_model`
    settings = {
        "trainer": checkpoint.get("trainer_settings") or {},
        "model": checkpoint.get("hyper_parameters") or {},
        "data": checkpoint.get("datamodule_hyper_parameters") or {},
    }
    facts = run.known("facts") if run else {}
    local = (state_of(checkpoint, FACTS_KEY) or facts).get("local")
    best = state_of(checkpoint, BEST_KEY).get("best") or facts.get("best") or {}
    step = checkpoint.get("global_step")
    of_best = best.get("step") == step and None not in (best.get("monitor"), best.get("value"))
    figures = state_of(checkpoint, FIGURES_KEY).get("last") or {}
    settings = (run.known("settings") if run else {}) | {
        name: group for name, group in settings.items() if group
    }
    return Origin(
        weights=str(file),
        run=run.folder if run else None,
        settings=_with_paths(settings, local),
        facts=facts,
        step=step,
        figures=figures
        or (best.get("figures") or {} if of_best else {}),  # weights alone bring none
        chosen=best if of_best else {},
    )


def _of_hf_folder(run: Run) -> Origin:
    facts = run.known("facts")
    best = facts.get("best") or {}
    settings = _with_paths(run.known("settings"), facts.get("local"))
    record = run.hf_record()
    if record is not None and best and record["step"] != best.get("step"):  # the run went on since
        return Origin(str(run.hf), run.folder, settings, facts, record["step"])
    known = None not in (best.get("monitor"), best.get("value"))
    return Origin(
        str(run.hf),
        run.folder,
        settings,
        facts,
        best.get("step"),
        run.best_figures,
        best if known else {},
    )


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


def start_of(origin: Origin) -> str:
    """Return the model that training began with; nothing where there was none."""
    name, revision = origin.setting("model.pretrained"), origin.setting("model.revision")
    return code(public_name(name)) + _at(revision) if name else ""


def source_of(data: dict[str, Any]) -> str:
    """Return the text that settings name, without the folders it lay in."""
    if data["source"] == "builtin":
        return "`builtin`, Python's language reference as CPython carries it"
    subset = f" {code(data['subset'])}" if data.get("subset") else ""
    return code(public_name(data["source"])) + subset + _at(data.get("revision"))


def _at(revision: str | None) -> str:
    return f" at {code(revision)}" if revision else ""


@dataclass(frozen=True)
class Exported:
    """What is told of a model beside its origin.

    Attributes:
        name: Of the folder, or of the repository where it goes.
        model_type: Of its configuration.
        parameters: Tied ones counted once.
        positions: Longest context in tokens.
        vocabulary: Tokens.
        dtype: Of the weights.
        license: SPDX-like identifier of the Hub's list.
        language: ISO code.
    """

    name: str
    model_type: str
    parameters: int
    positions: int
    vocabulary: int
    dtype: str
    license: str | None
    language: str | None


def model_card(model: Exported, origin: Origin, cards: list[dict[str, Any]]) -> str:
    """Return a model card: the Hub's metadata, then what a reader has to know.

    Args:
        model: What was exported.
        origin: Where it comes from.
        cards: Of ``evaluate``, as its JSON has them.

    Returns:
        The text of README.md. It names no folder of this machine.

    Reference:
        https://huggingface.co/docs/hub/model-cards
    """
    data = origin.settings.get("data") or {}
    validation = {metric.name: metric.card for metric in group("val") if metric.card}
    written = ModelCard.from_template(
        _metadata(model, origin, cards),
        str(TEMPLATE),
        model=model,
        quoted_name=json.dumps(model.name, ensure_ascii=False),
        origin=origin,
        cards=cards,
        source=source_of(data) if data.get("source") else "",
        start=start_of(origin),
        figures=FIGURES,
        measured={
            label: origin.figures[name]
            for name, label in validation.items()
            if origin.figures.get(name) is not None
        },
        code=code,
        number=number,
        source_of=source_of,
        protocol_of=protocol_of,
        extreme_of=extreme_of,
    )
    return f"{written}\n"


def _metadata(model: Exported, origin: Origin, cards: list[dict[str, Any]]) -> ModelCardData:
    source = hub_id(origin.setting("data.source"))
    base = hub_id(origin.setting("model.pretrained"))
    if not origin.of_training:  # a model of the Hub, exported again
        base = hub_id(origin.weights)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=public_name(card["source"]),
            dataset_name=card.get("text") or public_name(card["source"]),
            dataset_config=card.get("subset"),
            dataset_split=card["split"],
            metric_type=name,
            metric_name=f"{FIGURES[name]} ({protocol_of(card)})",
            metric_value=round(card[name], 4),
        )
        for card in cards
        for name in FIGURES
        if card.get(name) is not None
    ]
    return ModelCardData(
        language=model.language,
        license=model.license or "other",
        license_name=None if model.license else "to-be-filled-in",
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base,
        datasets=[source] if source else None,
        tags=["gpt2_lightning", model.model_type],
        model_name=model.name.rpartition("/")[2],
        eval_results=results or None,
    )


def protocol_of(card: dict[str, Any]) -> str:
    """Return how a card's text was scored."""
    stride = "" if card.get("stride") is None else f", stride {card['stride']:,}"
    return f"{card['protocol']}, context {card['context']:,}{stride}"
