"""WeightAverage: a moving average of the weights; the better of the two stands for the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import MetricCollection

from gpt2_lightning.model.loss import IGNORED
from gpt2_lightning.model.metrics import split_metrics
from gpt2_lightning.model.module import GPT2Module

AVERAGING = "averaging"  # entry of a checkpoint: the weights that its state_dict does not hold


class WeightAverage(Callback):
    """Keeps an exponential moving average of the weights; the better ones stand for the run.

    The average follows each optimizer step, by ``(1 + n) / (10 + n)`` at the n-th: it reaches back
    over about the last ninth of the steps so far, however long the run is. A validation measures
    both (``val/raw_loss``, ``val/averaged_loss``); ``val/loss`` and its like are the better one's,
    which samples and checkpoints of this validation hold as well. Training goes on with the raw
    weights, also from a checkpoint, which carries both.

    Reference: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992;
    the factor is that of ``tf.train.ExponentialMovingAverage``'s ``num_updates``.
    """

    def __init__(self) -> None:
        self.steps = 0  # that the average has followed
        self._weights: list[tuple[str, nn.Parameter]] = []
        self._other: list[Tensor] = []  # the average; the raw weights while the model holds it
        self._holds_average = False
        self._is_better = False
        self._metrics = MetricCollection({})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights as they are, unless a checkpoint has brought an average."""
        if not self._other:
            self._weights = _trained(pl_module)
            self._other = [it.detach().clone() for _, it in self._weights]
        self._other = [it.to(pl_module.device) for it in self._other]

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Train the raw weights."""
        self._hold_average(False)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Follow an optimizer step, unless it was left out."""
        module = cast(GPT2Module, pl_module)
        module.read_norm()  # whether the step was left out
        if batch["ends_step"] and not module.nonfinite.in_a_row:
            self.steps += 1
            share = 9 / (10 + self.steps)
            with torch.no_grad():
                torch._foreach_lerp_(self._other, [it.data for _, it in self._weights], share)

    # --- validation ---------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._hold_average(False)
        self._is_better = False
        found, _ = cast(GPT2Module, pl_module).original_bytes("validation")
        self._metrics = split_metrics("val/", found).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch with the average, too."""
        if self.steps == 0:
            return
        with self._average(), trainer.precision_plugin.forward_context(), torch.no_grad():
            nats = cast(GPT2Module, pl_module).nats(batch)
        self._metrics.update(nats, (batch["targets"] != IGNORED).sum())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the better one's numbers be the validation's; it comes before the module's own."""
        if self.steps == 0:
            return
        module = cast(GPT2Module, pl_module)
        raw, averaged = (
            float(metrics.compute()["val/loss"]) for metrics in (module.eval_metrics, self._metrics)
        )
        self._is_better = averaged < raw
        if self._is_better:
            module.eval_metrics = self._metrics
        numbers = {"val/raw_loss": raw, "val/averaged_loss": averaged}
        module.eval_results |= numbers
        module.log_dict(numbers, sync_dist=True)  # equal on all ranks already

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the model hold the better weights until training goes on."""
        self._hold_average(self._is_better)

    @contextmanager
    def _average(self) -> Iterator[None]:
        self._hold_average(True)
        try:
            yield
        finally:
            self._hold_average(False)

    def _hold_average(self, holds: bool) -> None:
        """Exchange the model's weights and the other ones; nothing is copied."""
        if holds == self._holds_average:
            return
        for index, (_, weight) in enumerate(self._weights):
            weight.data, self._other[index] = self._other[index], weight.data
        self._holds_average = holds

    # --- checkpoints --------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the weights that the model does not hold."""
        if not self._other or "optimizer_states" not in checkpoint:
            return
        names = [name for name, _ in self._weights]
        checkpoint[AVERAGING] = {
            "holds": "averaged" if self._holds_average else "raw",
            "steps": self.steps,
            "other": dict(zip(names, self._other, strict=True)),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up both; the model has been given those of the state_dict."""
        if trainer.state.fn != "fit" or (kept := checkpoint.get(AVERAGING)) is None:
            return
        self._weights = _trained(pl_module)
        self.steps = kept["steps"]
        self._other = [kept["other"][name].to(it.device).clone() for name, it in self._weights]
        self._holds_average = kept["holds"] == "averaged"
        self._hold_average(False)


def _trained(module: LightningModule) -> list[tuple[str, nn.Parameter]]:
    return [(name, it) for name, it in module.named_parameters() if it.requires_grad]
