"""How checkpoints come onto the disk: beside their place, flushed, then renamed."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from gpt2_lightning.storage import whole_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own writing goes through the temporary folder, and is a copy where that is on
    another file system: a full disk or SIGKILL leaves half a checkpoint under its final name.

    Args:
        behind: The plugin that lets this one save behind the training. Before a checkpoint is
            removed, it has to have saved the one that takes its place.
    """

    def __init__(self, behind: AsyncCheckpointIO | None = None) -> None:
        self.behind = behind

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; what is not on a disk here is left to Lightning.

        Args:
            checkpoint: Its content.
            path: Where.
            storage_options: Of other storage.

        Raises:
            OSError: If the disk refuses; what was there before is untouched.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            # a last.ckpt that is a link to the best (--checkpoint.save_last link) is no way to it
            with whole_file(Path(path), replace_link=True) as stream:
                torch.save(checkpoint, stream)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, once the one that was saved after it is whole."""
        if self.behind is not None:
            self.behind.teardown()  # waits, and raises what went wrong; it can save again then
        super().remove_checkpoint(path)


def give_to_async(plugins: Any) -> None:
    """Let an `AsyncCheckpointIO` among a user's plugins write whole checkpoints.

    Args:
        plugins: None, a plugin or a list of them, before the trainer has them.
    """
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        if isinstance(plugin, AsyncCheckpointIO) and plugin.checkpoint_io is None:
            plugin.checkpoint_io = WholeCheckpoints(plugin)


def give_to_trainer(trainer: Trainer) -> None:
    """Let a trainer write whole checkpoints, unless the user gave it a plugin for that.

    Sharded checkpoints go past every such plugin, and stay Lightning's.
    """
    found: CheckpointIO = trainer.strategy.checkpoint_io
    if type(found) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
