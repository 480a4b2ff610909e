"""The training step: what Lightning adds to it, and where its time goes.

    python -m benchmarks.profile_step
    python -m benchmarks.profile_step --recipe configs/quickstart.yaml --steps 60

`fit` runs as it does for a user, with its callbacks and loggers. After each of its steps a bare
loop over the same batches, the same loss, clipping and AdamW takes the same step with a model of
its own, so that both sides meet the machine at the same speed. Their losses have to be equal.
Validation is left out on both sides. GPT-2 124M, 2 x 1024 tokens in fp32, unless another recipe is
given. Last, torch's profiler looks at a bare step.
"""

import math
import os
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, chdir, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import auto_cli
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import matrix_product_rate, versions
from gpt2_lightning.cli import main as command
from gpt2_lightning.fit.checkpoints import typed
from gpt2_lightning.model.dropout import seed_dropout
from gpt2_lightning.model.gpt2 import (
    Architecture,
    count_parameters,
    training_flops_per_token,
)
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.optim import build_adamw, clip_gradient_norm

WARM_UP = 2  # steps that are not counted

GPT2 = ("--data.vocab_size=50257", "--data.batch_size=2", "--trainer.gradient_clip_val=1.0")


class BareLoop:
    """The mathematics of a run without Lightning.

    Args:
        trainer: Of the run, whose model has not taken a step yet.
        module: Its module.
    """

    def __init__(self, trainer: Trainer, module: GPT2Module) -> None:
        self.trainer = trainer
        settings = {**module.hparams, "hf_config": module.model.config.to_dict()}
        settings["architecture"] = Architecture(**settings["architecture"])
        settings["sampling"] = module.sampling
        self.module = GPT2Module(**settings).to(module.device).train()
        self.module.load_state_dict(module.state_dict())
        self.module._compiled = module._compiled and torch.compile(
            self.module.model.base_model.forward
        )
        self.batches = iter(typed(trainer).datamodule.train_dataloader())
        self.parameters = list(self.module.parameters())
        self.optimizer = build_adamw(
            self.module.named_parameters(),
            decayed=module.decayed,
            learning_rate=module.learning_rate,
            weight_decay=module.weight_decay,
            betas=module.betas,
            fused=True,
        )
        self.loss = 0.0

    def step(self, rate: float) -> None:
        """Take an optimizer step.

        Args:
            rate: Learning rate.
        """
        nats, ends = torch.zeros(()), False
        while not ends:
            batch: dict[str, Any] = next(self.batches)
            ends = batch["ends_step"]
            seed_dropout(self.module.seed, 0, batch["position"], self.module.device)
            with self._precision():
                of_batch = self.module.nats(batch)
            (of_batch / batch["step_targets"]).backward()
            nats += of_batch.detach()
        if self.trainer.gradient_clip_val:
            clip_gradient_norm(self.parameters, float(self.trainer.gradient_clip_val))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = float(nats) / batch["step_targets"]

    def _precision(self) -> AbstractContextManager[Any]:
        if self.trainer.precision != "bf16-mixed":
            return nullcontext()
        return torch.autocast(self.module.device.type, torch.bfloat16)


class Beside(Callback):
    """Takes each step of a run again in the bare loop, and notes the times of both.

    Attributes:
        under_lightning: Seconds from the end of this callback at one step to its beginning at the
            next: all that happens in a run between two steps.
        bare: Seconds of the same steps in the bare loop.
    """

    under_lightning: list[float]
    bare: list[float]
    loop: BareLoop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the same weights."""
        assert isinstance(pl_module, GPT2Module)
        cls = type(self)
        cls.under_lightning, cls.bare, cls.loop = [], [], BareLoop(trainer, pl_module)
        self._since = time.perf_counter()
        self._rate = 0.0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the rate of the step."""
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take the step in the bare loop."""
        if not batch["ends_step"]:
            return
        begin = time.perf_counter()
        self.under_lightning.append(begin - self._since)
        self.loop.step(self._rate)
        self.bare.append(time.perf_counter() - begin)
        assert isinstance(pl_module, GPT2Module)
        if trainer.global_step == pl_module.step_of_last_loss:
            ours, bare = cast(float, pl_module.last_loss), self.loop.loss
            assert math.isclose(ours, bare, rel_tol=1e-5), f"losses {ours} and {bare}"
        self._since = time.perf_counter()


def profile_of(loop: BareLoop, operations: int) -> None:
    """Print the operations that take most of a bare step's time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        loop.step(0.0)
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"a bare step, profiled: {total / 1e6:.2f} s")
    for row in rows[:operations]:
        print(f"{row.self_cpu_time_total / total:7.1%}  {row.count:4} calls  {row.key}")


def main(recipe: str | None = None, steps: int = 8, operations: int = 12, flags: str = "") -> None:
    """Print the times of a step under Lightning and in a bare loop, and a profile of the latter.

    Args:
        recipe: A YAML file; null is GPT-2 124M from scratch, 2 x 1024 tokens.
        steps: Optimizer steps of each side; the first two are not counted.
        operations: Rows of the profile.
        flags: More flags of `fit`, such as ``--trainer.precision=bf16-mixed``.
    """
    words = GPT2 if recipe is None else (f"--config={Path(recipe).absolute()}",)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        command(
            [
                "fit",
                *words,
                "--trainer.accelerator=cpu",
                "--trainer.limit_val_batches=0",
                "--trainer.max_epochs=-1",
                f"--trainer.max_steps={steps}",
                "--checkpoint.save_top_k=0",
                "--checkpoint.save_last=false",
                "--trainer.callbacks=benchmarks.profile_step.Beside",
                *flags.split(),
            ]
        )
    # the command has imported this file by its name
    from benchmarks.profile_step import Beside as run

    lightning, bare = run.under_lightning[WARM_UP:], run.bare[WARM_UP:]
    model, trainer = run.loop.module.model, run.loop.trainer
    data: Any = typed(trainer).datamodule
    tokens = data.batch_size * data.block_size * trainer.accumulate_grad_batches
    print(versions())
    rate = matrix_product_rate("float32")
    print(f"matrix product in float32: {rate:,.0f} GFLOP/s, {torch.get_num_threads()} threads")
    print(
        f"{count_parameters(model) / 1e6:.0f} M parameters, {trainer.precision}, {tokens:,} tokens "
        f"a step; medians of {len(bare)} steps of each side, in turn"
    )
    for name, seconds in (("under Lightning", lightning), ("bare loop", bare)):
        median = statistics.median(seconds)
        flops = training_flops_per_token(model, data.block_size) * tokens / median / 1e9
        print(
            f"{name:16}{median:9.4f} s a step {tokens / median:9.1f} tokens/s "
            f"{flops / rate:7.1%} of the matrix rate"
        )
    ratio = statistics.median(b / a for a, b in zip(lightning, bare, strict=True))
    print(f"speed under Lightning, of the bare loop's: {ratio:.3f}")
    if operations:
        profile_of(run.loop, operations)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    auto_cli(main, as_positional=False)
