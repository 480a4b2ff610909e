"""Sharded training (FSDP2): the strategy that lays out the processes, and its checkpoints."""

import shutil
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from gpt2_lightning.checkpoint import REST, is_sharded, load_shards
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import from_config, fuse_gelu
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.storage import whole_folder

WHOLE = StateDictOptions(full_state_dict=True)


class FSDP2Strategy(ModelParallelStrategy):
    """Shards weights, gradients and optimizer state over all processes; `GPT2Module` is sharded.

    Lightning's strategy, with another layout and other checkpoints. Lightning would lay out the
    processes of a machine for tensor parallelism; would write the shards over those of the last
    checkpoint, so that a killed process left a mixture; would unpickle what stands in shards; and
    would take the optimizer's state of a ddp run in the wrong order.

    Args:
        data_parallel_size: Processes that share the model: all, or ``auto``.
        tensor_parallel_size: Must be 1, or ``auto``: matrices are not computed in parts.
        save_distributed_checkpoint: Whether a checkpoint is a folder into which each process
            writes its shards, instead of one file that rank 0 writes; a file system that all
            machines share has to hold it.
        process_group_backend: As for Lightning's strategies.
        timeout: As for Lightning's strategies.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = 1,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            data_parallel_size,
            tensor_parallel_size,
            save_distributed_checkpoint,
            process_group_backend,
            timeout,
        )
        self.saves_shards = save_distributed_checkpoint

    def setup_environment(self) -> None:
        """Start the processes, and lay them out in one row.

        Raises:
            UsageError: If there are others than were given.
        """
        processes = self.num_nodes * self.num_processes
        if self._data_parallel_size not in ("auto", processes):
            raise UsageError(
                f"--trainer.strategy.data_parallel_size {self._data_parallel_size}: all "
                f"{processes} processes share the model. Leave it out."
            )
        # private: Lightning reads them here, and "auto" would mean the number of machines
        self._data_parallel_size, self._tensor_parallel_size = processes, 1
        super().setup_environment()

    # --- checkpoints --------------------------------------------------------------------------

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint whole or not at all, as one file or in shards; all ranks call it.

        Raises:
            OSError: If the disk refuses one of them; what was there before is untouched.
        """
        path = Path(self.broadcast(filepath))
        if not self.saves_shards:
            if self.is_global_zero and is_sharded(path):
                shutil.rmtree(path)
            self.barrier()
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        shards = {"state_dict": checkpoint.pop("state_dict")}
        for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
            shards[f"optimizer_{number}"] = state
        whole = whole_folder(path, replace=True) if self.is_global_zero else nullcontext(path)
        with whole as written:  # known to rank 0 alone
            folder = self.broadcast(written)
            try:
                save(shards, checkpoint_id=folder)
            except CheckpointException as error:  # the same on all ranks, and no Exception
                raise next(iter(error.failures.values()))[0] from error
            if self.is_global_zero:
                torch.save(checkpoint, folder / REST)
        self.barrier()

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load weights and optimizer state, each rank its shards, without unpickling code.

        Returns:
            The rest of the checkpoint.
        """
        path = Path(self.broadcast(checkpoint_path))
        model = self.model
        assert model is not None
        file = path / REST if is_sharded(path) else path
        rest: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if is_sharded(path):
            weights = {"state_dict": get_model_state_dict(model)}
            load_shards(weights, path)
            set_model_state_dict(model, weights["state_dict"])
            for number, optimizer in enumerate(self.optimizers):
                key = f"optimizer_{number}"
                state = {key: get_optimizer_state_dict(model, optimizer)}
                load_shards(state, path)
                set_optimizer_state_dict(model, optimizer, state[key])
        else:
            set_model_state_dict(model, rest.pop("state_dict"), options=WHOLE)
            for optimizer, saved in zip(
                self.optimizers, rest.get("optimizer_states", ()), strict=False
            ):
                by_name = _by_name(saved, model, optimizer)
                set_optimizer_state_dict(model, optimizer, by_name, options=WHOLE)
        return rest


def _by_name(
    saved: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return an optimizer's state by the names of parameters instead of their numbers.

    The numbers of a ddp run follow the optimizer's groups, those of a sharded run the model. The
    order within the groups is the same.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(it)] for it in group["params"]] for group in optimizer.param_groups]
    name_of = {
        number: name
        for group, named in zip(saved["param_groups"], groups, strict=True)
        for number, name in zip(group["params"], named, strict=True)
    }
    return {
        "state": {name_of[number]: state for number, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": named}
            for group, named in zip(saved["param_groups"], groups, strict=True)
        ],
    }


def whole_model(module: GPT2Module) -> PreTrainedModel | None:
    """Return the model of a run for one process to use; all ranks call it.

    Returns:
        The model itself; of a sharded one a copy on the CPU of rank 0, and None on the others.
    """
    if not isinstance(module, FSDPModule):
        return module.model
    if not (weights := whole_weights(module.model)):
        return None
    model = from_config(module.model.config.to_dict(), attention="sdpa")
    model.load_state_dict(weights)
    fuse_gelu(model)
    return model


def whole_weights(model: torch.nn.Module) -> dict[str, Any]:
    """Return a sharded model's weights on rank 0, and nothing on the others; all ranks call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)
