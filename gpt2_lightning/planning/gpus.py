"""Well-known GPUs: memory and peak rates, as their makers give them."""

from dataclasses import dataclass

from gpt2_lightning.errors import UsageError

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
