"""A plan: all that can be said of a run before anything is spent."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Timer

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.data.tokenizer import sampled_vocabulary
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.machine import settle, settle_elsewhere
from gpt2_lightning.model.schedule import Schedule
from gpt2_lightning.plan.advice import Advice, Disk, advice, caveats, disk_of, fits
from gpt2_lightning.plan.hardware import GPU, Hardware, hardware_of
from gpt2_lightning.plan.memory import MemoryEstimate, Setting, estimate_memory
from gpt2_lightning.plan.shape import precision_of, shape_of
from gpt2_lightning.plan.steps import Steps, steps_of
from gpt2_lightning.plan.time import (
    Duration,
    from_measured,
    from_rate,
    measure_step,
    steps_within,
)


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        model: Name or folder of the weights that it begins with; null where it has none.
        text: Source of the text, its subset, and how it is cleaned, in words.
        setting: What it is.
        steps: How far it goes.
        memory: What each device holds.
        advice: What makes that fit, where it does not.
        duration: How long it takes, where that is known.
        disk: What it writes.
        max_time: Duration after which the run is ended, if it is not over; null sets no limit.
        fitted: Whether the schedule is fitted to it, and so are the steps here; null where it will
            be, but nothing says how long a step takes: the steps are one epoch's then.
        warnings: What is likely to be a mistake.
    """

    model: str | None
    text: str
    setting: Setting
    steps: Steps
    memory: MemoryEstimate
    advice: list[Advice]
    duration: Duration | None
    disk: Disk
    max_time: str | None
    fitted: bool | None
    warnings: list[str]

    @property
    def fits(self) -> bool | None:
        """Whether each device has the memory; null where its memory is not known."""
        memory = self.setting.hardware.memory
        return None if memory is None else fits(self.memory.needed, memory)


def plan_of(
    values: Any,
    *,
    measure: bool,
    device: GPU | None,
    device_memory: float | None,
    device_flops: float | None,
    working: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Plan:
    """Plan a run; the text is read and tokenized, as fit would find it.

    Args:
        values: The flags of `fit`, filled in.
        measure: Whether to take a few steps on this machine.
        device: The GPU of another machine.
        device_memory: Memory of each device there, in 10^9 bytes.
        device_flops: Its peak rate, in operations/s.
        working: Makes a context, in which something is done that takes its time.

    Raises:
        UsageError: If a flag says what cannot be.
    """
    elsewhere = device is not None or device_memory is not None or device_flops is not None
    if measure and elsewhere:
        raise UsageError(
            "--measure: it takes steps on this machine, and --device, --device_memory and "
            "--device_flops speak of another. Choose one of them."
        )
    if device_flops is not None and device_flops <= 0:
        raise UsageError(f"--device_flops {device_flops:g}: must be > 0, in operations/s.")
    hardware = hardware_of(values.trainer, device_memory, device)
    if elsewhere:
        settle_elsewhere(values, accelerator=hardware.accelerator, has_bf16=hardware.has_bf16)
    else:
        settle(values)
    precision = precision_of(values.trainer.precision)
    data = WikiTextDataModule(**values.data.as_dict())
    model: Mapping[str, Any] = values.model.as_dict()
    if values.model.hf_config is None and values.model.pretrained is not None:
        shape_of(model, data.block_size, data.vocab_size)  # a mistake comes before the text is read
    data.prepare(["train", "validation"])
    data.setup("fit")
    shape = shape_of(model, data.block_size, int(values.model.vocab_size or data.vocab_size))
    setting = Setting(
        shape=shape,
        precision=precision,
        hardware=hardware,
        batch_size=data.batch_size,
        block_size=data.block_size,
        padded=data.blocks == "pad" or data.attend == "document",
        attention=values.model.attention,
        checkpointing=bool(values.model.gradient_checkpointing),
        accumulate=int(values.trainer.accumulate_grad_batches),
        saves=bool(values.checkpoint.save_last or values.checkpoint.save_top_k),
        exports=values.trainer.logger is not False,
        validates=values.trainer.limit_val_batches != 0,
        averages=values.model.averaging is not None,
    )
    with working("Taking a few steps") if measure else nullcontext():
        estimate = _estimator(values, model, data, setting, measure, device, device_flops)
    steps, duration, fitted = _fitted_to_time(values, data, hardware.processes, estimate)
    needed = estimate_memory(setting)
    disk = disk_of(setting, steps, values.checkpoint, _folder(values.trainer.logger))
    unsuited = sampled_vocabulary(
        data.tokenizer, data.stores["train"].ids, trained=data.tokenizer_name is None
    )
    short = hardware.memory is not None and not fits(needed.needed, hardware.memory)
    return Plan(
        model=values.model.pretrained,
        text=data.described,
        setting=setting,
        steps=steps,
        memory=needed,
        advice=advice(setting) if short else [],
        duration=duration,
        disk=disk,
        max_time=None if values.trainer.max_time is None else str(values.trainer.max_time),
        fitted=fitted,
        warnings=caveats(values, setting, steps, disk, duration) + ([unsuited] if unsuited else []),
    )


def _folder(logger: Any) -> Path:
    """Return where the run folder comes to stand."""
    try:
        return Path(logger["init_args"]["save_dir"])
    except (TypeError, KeyError):
        return Path()


Estimate = Callable[[Steps], Duration]


def _estimator(
    values: Any,
    model: Mapping[str, Any],
    data: WikiTextDataModule,
    setting: Setting,
    measure: bool,
    device: GPU | None,
    device_flops: float | None,
) -> Estimate | None:
    """Return what says how long some steps take; None where nothing does."""
    if measure:
        return partial(from_measured, measure_step(model, data, values.trainer), setting)
    if device_flops is not None:
        return partial(from_rate, device_flops, "--device_flops", setting)
    if device is not None:
        half = setting.precision.products == 2
        rate = device.half if half else device.full
        kind = "half-precision" if half else "fp32"
        source = f"{device.name}: {rate:g} TFLOP/s in {kind} products ({device.source})"
        return partial(from_rate, rate * 1e12, source, setting)
    return None


def _fitted_to_time(
    values: Any, data: WikiTextDataModule, processes: int, estimate: Estimate | None
) -> tuple[Steps, Duration | None, bool | None]:
    """Count the steps, as a time limit shortens the run; see `Plan.fitted`."""
    trainer, given = values.trainer.clone(), values.model.schedule_steps
    changed = Schedule(changes=values.model.schedule_changes or []).end
    if changed is not None:  # a time limit has decided
        given = changed
        trainer.max_steps = given if trainer.max_steps < 0 else min(given, trainer.max_steps)
    limit = Timer(trainer.max_time).time_remaining()
    fits = limit is not None and given is None and values.model.schedule != "constant"
    endless = (trainer.max_epochs or -1) < 0 and trainer.max_steps < 0
    if fits and endless:
        trainer.max_epochs = 1
    steps = steps_of(data, trainer, given, processes)
    duration = None if estimate is None else estimate(steps)
    if estimate is None or duration is None or not fits or limit is None:
        return steps, duration, None if fits and endless else False
    if not endless and duration.whole[0] <= limit:
        return steps, duration, False
    trainer.max_epochs, trainer.max_steps = -1, max(steps_within(limit, steps, duration), 1)
    steps = steps_of(data, trainer, given, processes)
    return steps, estimate(steps), True


def as_document(plan: Plan) -> dict[str, Any]:
    """Return all figures of a plan as plain data: bytes, seconds, tokens and steps."""
    shape = asdict(plan.setting.shape)
    del shape["tensors"]
    shape["quantized"] = sum(shape["quantized"])
    hardware: Hardware = plan.setting.hardware
    return {
        "text": plan.text,
        "model": {"pretrained": plan.model, "parameters": plan.setting.shape.parameters, **shape},
        "place": asdict(hardware) | {"processes": hardware.processes},
        "precision": plan.setting.precision.name,
        "batch_size": plan.setting.batch_size,
        "block_size": plan.setting.block_size,
        "accumulate_grad_batches": plan.setting.accumulate,
        "gradient_checkpointing": plan.setting.checkpointing,
        "steps": asdict(plan.steps),
        "memory": {
            "peak": plan.memory.peak.size,
            "at": plan.memory.peak.name,
            "imports": plan.memory.imports,
            "needed": plan.memory.needed,
            "device": hardware.memory,
            "fits": plan.fits,
            "moments": {
                phase.name: {item.name: item.size for item in phase.items}
                for phase in plan.memory.phases
            },
        },
        "advice": [asdict(it) for it in plan.advice],
        "time": None
        if plan.duration is None
        else asdict(plan.duration) | {"whole": plan.duration.whole},
        "disk": asdict(plan.disk) | {"kept": plan.disk.kept},
        "warnings": plan.warnings,
    }
