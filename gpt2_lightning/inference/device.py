"""Where a model runs."""

import os
from typing import Literal, cast

import torch
from transformers import PreTrainedModel

from gpt2_lightning.errors import UsageError

DtypeName = Literal["fp32", "bf16"]
DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def place(model: PreTrainedModel, device: str, dtype: DtypeName | None = None) -> None:
    """Bring a model onto a device, in place.

    Args:
        model: The model.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes the accelerator that is
            there, of which each process of torchrun takes its own.
        dtype: Type of its weights; null leaves them as they are.

    Raises:
        UsageError: If the device cannot be used.
    """
    try:
        if torch.device(_best() if device == "auto" else device).type == "meta":
            raise RuntimeError("it holds no numbers")
        cast(torch.nn.Module, model).to(
            torch.device(_best() if device == "auto" else device),
            dtype=None if dtype is None else DTYPES[dtype],
        )
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device}: it cannot be used here ({str(error).splitlines()[0]}). "
            "--device cpu always works."
        ) from error


def _best() -> str:
    found = torch.accelerator.current_accelerator()
    if found is None:
        return "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    return found.type if found.type == "mps" else f"{found.type}:{local_rank}"
