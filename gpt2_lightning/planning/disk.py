"""What a run leaves on the disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_lightning.planning.activations import FP32
from gpt2_lightning.planning.setting import Setting
from gpt2_lightning.planning.steps import Steps


@dataclass(frozen=True)
class Disk:
    """Bytes of a run folder.

    Attributes:
        checkpoint: One checkpoint: weights and, unless left out, two running means for each.
        checkpoints: How many are kept: the best ones and the last.
        hf: The weights of hf/.
        peak: The most at any time: a checkpoint is written before the one that it replaces goes.
        free: Free bytes where the run folder comes to stand.
        folder: Where that is.
    """

    checkpoint: int
    checkpoints: int
    hf: int
    peak: int
    free: int
    folder: str

    @property
    def kept(self) -> int:
        """Bytes after the run."""
        return self.checkpoint * self.checkpoints + self.hf


def disk_of(setting: Setting, steps: Steps, checkpoint: Any, folder: Path) -> Disk:
    """Count what a run writes; curves, samples and the report take a few megabytes more.

    Args:
        setting: The run.
        steps: How far it goes.
        checkpoint: The flags of the checkpoints.
        folder: The logger's folder, which may not be there yet.
    """
    numbers = 1 if checkpoint.save_weights_only else 3
    one = numbers * setting.precision.weights * setting.shape.parameters
    best = int(checkpoint.save_top_k)
    best = steps.validations if best < 0 else min(best, steps.validations)
    kept = best + bool(checkpoint.save_last) if setting.saves else 0
    hf = FP32 * setting.shape.parameters if setting.exports else 0
    there = folder.expanduser().resolve()
    while not there.exists():
        there = there.parent
    return Disk(
        checkpoint=one if setting.saves else 0,
        checkpoints=kept,
        hf=hf,
        peak=one * (kept + (1 if kept else 0)) + hf,
        free=shutil.disk_usage(there).free,
        folder=str(folder),
    )
