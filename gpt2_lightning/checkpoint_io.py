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
        behind: Whether saving goes on behind the training, as with `AsyncCheckpointIO`. A
            checkpoint is then removed when the next one is whole, and not when that was asked for.
    """

    def __init__(self, *, behind: bool = False) -> None:
        self.behind = behind
        self._outlived: list[Any] = []

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
        self._remove_outlived()

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, once the one that was saved after it is whole."""
        if self.behind:
            self._outlived.append(path)
        else:
            super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Remove what the last of the checkpoints has outlived."""
        self._remove_outlived()

    def _remove_outlived(self) -> None:
        while self._outlived:
            super().remove_checkpoint(self._outlived.pop())


def give_to_async(plugins: Any) -> None:
    """Let an `AsyncCheckpointIO` among a user's plugins write whole checkpoints.

    Args:
        plugins: None, a plugin or a list of them, before the trainer has them.
    """
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        if isinstance(plugin, AsyncCheckpointIO) and plugin.checkpoint_io is None:
            plugin.checkpoint_io = WholeCheckpoints(behind=True)


def give_to_trainer(trainer: Trainer) -> None:
    """Let a trainer write whole checkpoints, unless the user gave it a plugin for that.

    Sharded checkpoints go past every such plugin, and stay Lightning's.
    """
    found: CheckpointIO = trainer.strategy.checkpoint_io
    if type(found) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
