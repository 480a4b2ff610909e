"""The devices of a run, how they share it, and their memory; well-known GPUs."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.machine import cpu_has_bf16

_NVIDIA = "https://www.nvidia.com/"


@dataclass(frozen=True)
class GPU:
    """A GPU.

    Attributes:
        name: By which `--device` asks for it.
        memory_gb: Its memory, in 10^9 bytes.
        half: Peak rate of dense fp16 or bf16 products with sums in fp32, in 10^12 operations/s.
        full: Peak rate of fp32 products, in 10^12 operations/s; TF32 is off unless asked for.
        has_bf16: Whether it knows bf16.
        source: Where its maker says so.
    """

    name: str
    memory_gb: float
    half: float
    full: float
    has_bf16: bool
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("t4", 16, 65, 8.1, False, _NVIDIA + "en-us/data-center/tesla-t4/"),
        GPU("v100", 16, 125, 15.7, False, _NVIDIA + "en-us/data-center/v100/"),
        GPU(
            "rtx3090",
            24,
            71,
            35.6,
            True,
            _NVIDIA + "content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
        ),
        GPU(
            "rtx4090",
            24,
            165.2,
            82.6,
            True,
            "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/"
            "nvidia-ada-gpu-architecture.pdf",
        ),
        GPU("a10", 24, 125, 31.2, True, _NVIDIA + "en-us/data-center/products/a10-gpu/"),
        GPU("l4", 24, 121, 30.3, True, _NVIDIA + "en-us/data-center/l4/"),
        GPU("l40s", 48, 362, 91.6, True, _NVIDIA + "en-us/data-center/l40s/"),
        GPU("a100", 40, 312, 19.5, True, _NVIDIA + "en-us/data-center/a100/"),
        GPU("a100-80gb", 80, 312, 19.5, True, _NVIDIA + "en-us/data-center/a100/"),
        GPU("h100", 80, 989, 67, True, _NVIDIA + "en-us/data-center/h100/"),
    )
}


def gpu_named(name: str) -> GPU:
    """Return a GPU of the table.

    Raises:
        UsageError: If it is not there.
    """
    found = GPUS.get(name.lower().replace(" ", "").replace("_", "-"))
    if found is None:
        raise UsageError(
            f"--device {name}: it is not in the table, which has {', '.join(GPUS)}. Any other: "
            "--device_memory, in GB, and --device_flops, in operations/s."
        )
    return found


Strategy = Literal["single", "ddp", "fsdp"]


@dataclass(frozen=True)
class Hardware:
    """The devices of a run.

    Attributes:
        accelerator: ``cpu``, ``cuda`` or ``mps``.
        devices: Processes on a machine, each with a device (or a share of the CPU).
        machines: Number of them.
        strategy: How processes share: ``ddp`` copies the model, ``fsdp`` deals it out.
        memory: Bytes that a process may take; null where that is not known.
        memory_from: Where that figure comes from.
        has_bf16: Whether it has instructions for bf16, as far as that is known.
    """

    accelerator: str
    devices: int
    machines: int
    strategy: Strategy
    memory: int | None
    memory_from: str
    has_bf16: bool = True

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.devices * self.machines

    def with_strategy(self, strategy: Strategy) -> "Hardware":
        """Return the same devices, shared otherwise."""
        return replace(self, strategy=strategy)


def hardware_of(trainer: Any, device_memory: float | None, gpu: GPU | None) -> Hardware:
    """Return where `--trainer.*` puts a run.

    Args:
        trainer: The flags of the trainer.
        device_memory: Memory of a device in 10^9 bytes, where it is not this machine's.
        gpu: The device, where it is not this machine's.

    Raises:
        UsageError: If memory estimation does not support the accelerator or the strategy.
    """
    elsewhere = device_memory is not None or gpu is not None
    accelerator = "cuda" if gpu is not None else _accelerator(str(trainer.accelerator), elsewhere)
    devices = _devices(trainer.devices, accelerator)
    memory: int | None
    if device_memory is not None:
        if device_memory <= 0:
            raise UsageError(f"--device_memory {device_memory:g}: must be > 0, in GB.")
        memory, source = int(device_memory * 1e9), "--device_memory"
    elif gpu is not None:
        memory, source = int(gpu.memory_gb * 1e9), f"--device {gpu.name}"
    elif accelerator == "cuda":
        memory, source = torch.cuda.mem_get_info()[1], torch.cuda.get_device_name()
    else:
        ram = machine_memory()
        shared = f", shared by {devices} processes" if devices > 1 else ""
        memory, source = ram and ram // devices, f"this machine's RAM{shared}"
    return Hardware(
        accelerator,
        devices,
        int(trainer.num_nodes),
        _strategy(trainer.strategy, devices * int(trainer.num_nodes)),
        memory,
        source,
        _has_bf16(accelerator, gpu),
    )


def machine_memory() -> int | None:
    """Return the memory that this machine, or this container, has, in bytes, if it says so."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found = min(found, int(text))
    return found


def _has_bf16(accelerator: str, gpu: GPU | None) -> bool:
    if gpu is not None:
        return gpu.has_bf16
    if accelerator == "cuda":
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False)
    return cpu_has_bf16()


def _accelerator(asked: str, elsewhere: bool) -> str:
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    match asked:
        case "auto":
            return "cuda" if has_cuda else "mps" if has_mps else "cpu"
        case "cpu" | "mps":
            return asked
        case "gpu" | "cuda" if has_cuda or elsewhere:
            return "cuda"
        case "gpu" | "cuda":
            raise UsageError(
                f"--trainer.accelerator {asked}: this machine has no GPU. For another machine say "
                "what its GPU holds, --device_memory 16, or which it is, --device l4; or plan for "
                "--trainer.accelerator cpu."
            )
    raise UsageError(
        f"--trainer.accelerator {asked}: memory estimation does not support it. "
        "Choose auto, cpu or gpu."
    )


def _devices(asked: Any, accelerator: str) -> int:
    if isinstance(asked, list):
        return len(asked)
    if isinstance(asked, str) and "," in asked:
        return len([it for it in asked.split(",") if it.strip()])
    if str(asked) in ("auto", "-1"):
        return max(torch.cuda.device_count(), 1) if accelerator == "cuda" else 1
    try:
        devices = int(asked)
    except ValueError:
        devices = 0
    if devices < 1:
        raise UsageError(f"--trainer.devices {asked}: give a number of 1 or more, or auto.")
    return devices


def _strategy(asked: Any, processes: int) -> Strategy:
    name = asked if isinstance(asked, str) else str(asked["class_path"])
    name = name.rpartition(".")[2].lower()
    if processes == 1:
        return "single"
    if name.startswith("fsdp"):
        return "fsdp"
    if name.startswith(("ddp", "auto")):
        return "ddp"
    raise UsageError(
        f"--trainer.strategy {name}: memory estimation does not support it. "
        "Choose auto, ddp or fsdp2."
    )
