"""How fast it goes and what it takes: predicted tokens/s, model FLOP/s, peak memory."""

import sys
import time
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.callbacks.stop import Stopped
from gpt2_lightning.model.flops import training_flops_per_token
from gpt2_lightning.model.module import GPT2Module


class Throughput(Callback):
    """Logs the speed since the last logged step; validation and saving do not count.

    ``train/tokens_per_second`` counts predicted targets only, of all ranks.
    ``train/model_flops_per_second`` is what the model's mathematics needs for them, without
    recomputation. ``train/peak_memory_gb`` is the process' high-water mark, or the GPU's, in
    10^9 bytes.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self.flops_per_token = 0.0
        self._since: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the model's operations once."""
        model = cast(GPT2Module, pl_module).model
        block_size = cast(Any, trainer).datamodule.block_size
        self.flops_per_token = training_flops_per_token(model, block_size)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, unless it runs."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log at the steps at which everything is logged."""
        if not batch["ends_step"]:
            return
        self.tokens += batch["step_targets"]
        if cast(GPT2Module, pl_module).logs_step(trainer.global_step):
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last step, should the run have ended early."""
        if self.tokens and cast(Any, trainer).log_every_n_steps > 0:
            self._log(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Log the last step before a signal that ends the run."""
        if isinstance(exception, Stopped):
            self.on_train_end(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # once a log interval: the work is done
        self._pause()
        speed = self.tokens / self.seconds
        metrics = {
            "train/tokens_per_second": speed,
            "train/model_flops_per_second": speed * self.flops_per_token,
        }
        if (memory := peak_memory(pl_module.device)) is not None:
            metrics["train/peak_memory_gb"] = memory / 1e9
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self.tokens, self.seconds = 0, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause()

    def _pause(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


def peak_memory(device: torch.device) -> int | None:
    """Return the most memory that was held, in bytes: the GPU's, or the process' on a CPU.

    None on Windows, whose Python tells no high-water mark.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    high_water = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return high_water if sys.platform == "darwin" else high_water * 1024  # bytes, or KiB
