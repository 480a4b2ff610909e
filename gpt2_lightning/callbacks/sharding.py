"""Whether every process has the model whole."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy


def is_sharded(trainer: Trainer) -> bool:
    """Tell whether the model's weights are parted among the processes.

    One process alone cannot use the model then: it would wait for the others' parts for ever.
    """
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
