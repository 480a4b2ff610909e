"""GPT2Module: the loss, the optimizer and the numbers of training."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.checkpoint import FORMAT, take_up, trainer_settings, upgrade
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.decoding import Assembler, generate
from gpt2_lightning.model.dropout import replace_dropout, seed_dropout
from gpt2_lightning.model.gpt2 import (
    Architecture,
    AttentionName,
    block_matrices,
    build,
    checkpoint_activations,
    dropouts,
    fuse_gelu,
    positions_of,
    shard,
)
from gpt2_lightning.model.lora import TRAIN_ON, Lora, adapt, check_base, check_lora, keep_adapter
from gpt2_lightning.model.loss import IGNORED, summed_nats
from gpt2_lightning.model.metrics import split_metrics
from gpt2_lightning.model.nonfinite import NonfiniteSteps, NotFinite, StepNorm, skips_itself
from gpt2_lightning.model.optim import MuonWithAdamW, build_adamw, clip_gradient_norm
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.model.schedule import Change, Schedule, ScheduleName
from gpt2_lightning.pretrained import what_tokenizer_lacks

log = logging.getLogger(__name__)


class TrainingData(Protocol):
    """What the module needs of the datamodule; where the text comes from, it does not know."""

    block_size: int
    tokenizer: PreTrainedTokenizerBase

    def train_dataloader(self) -> Any:
        """Return micro-batches; ``num_steps`` is the optimizer steps of an epoch."""

    def assembler(self, prompt: list[int], stop: Sequence[str]) -> Assembler:
        """Return what puts the text after a prompt together."""

    def original_bytes(self, split: str) -> tuple[int | None, str]:
        """Return the UTF-8 bytes of a split; or None, and why they are not all predicted."""


class TypedTrainer(Protocol):
    """What Lightning's Trainer has without declaring it, so that a type checker misses it."""

    datamodule: TrainingData
    fast_dev_run: bool | int
    log_every_n_steps: int


def typed(trainer: Trainer) -> TypedTrainer:
    """Return the same trainer, with the types of what it does not declare."""
    return cast(TypedTrainer, trainer)


class GPT2Module(LightningModule):
    """GPT-2, fine-tuned or trained from scratch.

    Args:
        pretrained: Hub id or folder of a GPT-2; null starts from scratch.
        revision: Branch, tag or commit on the Hub.
        architecture: Shape of the model from scratch; ignored with ``pretrained``.
        dropout: Dropout probability on embeddings and residuals; null keeps the model's.
        attention_dropout: Dropout probability on attention; null keeps the model's. It is off
            unless said, since anything above 0 keeps attention off its fused, quicker path.
        attention: Attention implementation: ``sdpa``, ``eager`` or ``flash_attention_2``.
        optimizer: ``adamw``; or ``muon``, which trains the matrices of the blocks by Muon and all
            else by AdamW: fewer steps from scratch.
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices; biases and layer norms have none.
        betas: Decay rates of AdamW's running means.
        schedule: ``linear`` or ``cosine`` to 0; ``wsd``, which stays at the peak and falls to 0 in
            the last part; or ``constant``.
        decay_share: Share of the steps after the warm-up in which ``wsd`` falls.
        warmup_steps: Optimizer steps until the peak.
        schedule_steps: Optimizer steps until the schedule's end; null is the run's length:
            ``max_epochs`` if given, else ``max_steps``, or what a time limit leaves of it.
        schedule_changes: ``[step, end]``, in order: from that step on, what is left of the schedule
            ends with the other, and the run with it. A run with a time limit makes and writes
            them, so that it can be repeated.
        averaging: ``ema`` keeps a moving average of the weights, validates it beside them and lets
            the better of the two stand for the run, in its checkpoints and in ``hf/``.
        lora: Adapters of low rank beside the matrices of the blocks, which alone are trained: a
            fraction of the memory for gradients and optimizer. Off while its rank is 0.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, slower.
        compile: Compile the transformer with ``torch.compile``; with ``auto`` the command line does
            so where a GPU has Triton.
        on_nonfinite: What happens at an optimizer step whose loss or gradient norm is infinite or
            not a number: ``stop`` ends the run before that step is taken; ``skip`` leaves the step
            out, counts it in ``train/skipped_steps`` and goes on, until ten in a row end the run.
            What only fp16's loss scaling has made too large is left out in both.
        sampling: How ``predict`` and the samples at validation are drawn.
        vocab_size: Size of the vocabulary from scratch, or with tokens added; the command line sets
            it.
        added_tokens: How many of ``vocab_size`` tokens the data adds to those of pretrained
            weights, whose embedding grows; the command line sets it.
        block_size: Tokens in a block; the command line sets it.
        seed: Decides dropout; the command line sets it to ``seed_everything``.
        hf_config: A Hugging Face configuration to build the model from, without weights; a
            checkpoint brings it, so that neither Hub nor folder is needed.

    Raises:
        UsageError: If the model cannot be built or does not suit the data.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        revision: str | None = None,
        architecture: Architecture = Architecture(),  # noqa: B008 - read-only; shown by --help
        dropout: float | None = None,
        attention_dropout: float | None = 0.0,
        attention: AttentionName = "sdpa",
        optimizer: Literal["adamw", "muon"] = "adamw",
        learning_rate: float = 5e-4,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        schedule: ScheduleName = "cosine",
        decay_share: float = 0.2,
        warmup_steps: int = 0,
        schedule_steps: int | None = None,
        schedule_changes: list[Change] | None = None,
        averaging: Literal["ema"] | None = None,
        lora: Lora = Lora(),  # noqa: B008 - read-only; shown by --help
        gradient_checkpointing: bool = False,
        compile: bool | Literal["auto"] = False,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 - read-only; shown by --help
        vocab_size: int | None = None,
        added_tokens: int = 0,
        block_size: int = 1024,
        seed: int = 0,
        hf_config: dict[str, Any] | None = None,
    ) -> None:
        # plain values only: a checkpoint has to load with weights_only=True
        own = {"self", "__class__", "hf_config"}  # not flags
        flags = {name: value for name, value in locals().items() if name not in own | {"own"}}
        flags |= {"architecture": asdict(architecture), "betas": list(betas), "lora": asdict(lora)}
        super().__init__()
        self.save_hyperparameters(flags | {"sampling": asdict(sampling)}, logger=False)
        sampling.check("model.sampling.")
        if compile == "auto":
            raise UsageError("--model.compile auto: from Python, give True or False.")
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.schedule_steps = schedule_steps
        self.schedule_changes = [list(it) for it in schedule_changes or []]
        self.decay_share = decay_share
        self.has_time_limit = False
        self.compile_model = compile
        self.sampling = sampling
        self.seed = seed
        self.lora = lora
        check_lora(lora, pretrained)
        self.model = build(
            pretrained,
            revision,
            hf_config,
            architecture,
            vocab_size=vocab_size,
            block_size=block_size,
            attention=attention,
            dropout=dropouts(dropout, attention_dropout),
            reads_base=lora.rank > 0,
            added_tokens=added_tokens,
        )
        self.base_digest = adapt(self.model, lora)
        self.strict_loading = not lora.rank  # a checkpoint has the adapter alone
        fuse_gelu(self.model)
        replace_dropout(self.model)
        # by name, while each parameter is whole: a strategy may flatten what it shards
        self.decayed = {name for name, it in self.named_parameters() if it.dim() >= 2}
        if gradient_checkpointing:
            checkpoint_activations(self.model)
        self.eval_metrics = MetricCollection({})
        self.eval_results: dict[str, float] = {}
        self.last_loss: float | None = None  # of the last step that was logged
        self.step_of_last_loss = 0
        self._compiled: Callable[..., Any] | None = None
        self._step_nats: Tensor | None = None
        self._ended_step: tuple[Tensor, int] | None = None  # nats of this rank, targets of all
        self.nonfinite = NonfiniteSteps(on_nonfinite, learning_rate)
        self._unlogged: tuple[Tensor, int, dict[str, Any]] | None = None  # the newest step
        self._norm: StepNorm | None = None  # of its gradients, until it is read
        self._last_step = 0  # that the run will take
        self._epoch_steps = 1
        self.trained_steps = 0  # of the checkpoint that was loaded

    # --- before a run -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the model against the data, in plain numbers, and get ready.

        Raises:
            UsageError: If blocks exceed the positions or ids the vocabulary.
        """
        data = typed(self.trainer).datamodule
        positions, vocabulary = positions_of(self.model), self.model.config.vocab_size
        if stage != "predict" and data.block_size > positions:
            raise UsageError(
                f"--data.block_size {data.block_size}: the model has {positions} positions. "
                f"--data.block_size {positions} would work."
            )
        if len(data.tokenizer) > vocabulary:
            raise UsageError(
                f"--data.tokenizer: its {len(data.tokenizer)} tokens exceed the model's "
                f"vocabulary of {vocabulary}. Use the model's own tokenizer (leave "
                "--data.tokenizer out), or a model from scratch (--model.pretrained null)."
            )
        if lacking := what_tokenizer_lacks(data.tokenizer, self.model.config):
            log.warning("--data.tokenizer: %s.", lacking)
        self.model.config.bos_token_id = data.tokenizer.bos_token_id
        self.model.config.eos_token_id = data.tokenizer.eos_token_id
        # compiled as a function: a compiled module would rename every key of the checkpoint
        if self.compile_model:
            self._compiled = torch.compile(self.model.base_model.forward)

    def configure_model(self) -> None:
        """Shard the model over the processes, where the strategy has laid them out for it.

        The loss goes past ``forward``, so the method that computes it gathers the weights.
        """
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            mixed = self.trainer.precision == "bf16-mixed"
            shard(self, self.device_mesh["data_parallel"], bf16_mixed=mixed)
            register_fsdp_forward_method(self, "nats")

    @property
    def fits_time(self) -> bool:
        """Whether a time limit decides the schedule's length, where nothing else ends it before."""
        return self.has_time_limit and self.schedule_steps is None and self.schedule != "constant"

    def total_steps(self) -> int | None:
        """Return the optimizer steps of the schedule: epochs x steps of an epoch, or max_steps.

        What a time limit has changed goes before them. None where only that limit says it, and
        has not yet.

        Raises:
            UsageError: If nothing says it.
        """
        return self._schedule().end

    def _schedule(self) -> Schedule:
        trainer, steps = self.trainer, self.schedule_steps
        if steps is None and trainer.max_epochs is not None and trainer.max_epochs >= 0:
            # The loader is built for its numbers alone; Lightning's estimated_stepping_batches
            # would set up its own early and lose the position that a checkpoint restores.
            data = typed(trainer).datamodule
            steps = int(trainer.max_epochs * data.train_dataloader().num_steps)
        elif steps is None and trainer.max_steps > 0:
            steps = trainer.max_steps
        elif steps is None and not (self.has_time_limit or self.schedule_changes):
            raise UsageError(
                "--trainer.max_epochs: the schedule needs an end. Give --trainer.max_epochs, "
                "--trainer.max_steps, --minutes or --model.schedule_steps."
            )
        return Schedule(
            self.schedule, self.warmup_steps, steps, self.decay_share, self.schedule_changes
        )

    def allowed_steps(self) -> int | None:
        """Return the optimizer step with which max_steps or max_epochs ends the run; or None."""
        trainer = self.trainer
        ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            epoch = typed(trainer).datamodule.train_dataloader().num_steps
            ends.append(trainer.max_epochs * epoch)
        return min(ends, default=None)

    def run_steps(self) -> int | None:
        """Return the optimizer step that the run ends with, which may not be the schedule's.

        None where only a time limit says it, and has not yet.
        """
        allowed, total = self.allowed_steps(), self.total_steps()
        if allowed is None or total is None or not self.schedule_changes:
            return total if allowed is None else allowed
        return min(allowed, total)

    def change_schedule(self, end: int) -> None:
        """Spread what is left of the schedule, from here on, over the steps up to another end."""
        self.schedule_changes.append([self.global_step, end])
        self._last_step = end

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Give the optimizer, which decays matrices only, and the schedule, turned every step."""
        adamw = build_adamw(
            self.named_parameters(),
            decayed=self.decayed,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            # fp16 scales its gradients, and the fused step would unscale them after clipping
            fused=self.trainer.precision != "16-mixed",
        )
        matrices = block_matrices(self.model)
        optimizer = MuonWithAdamW(adamw, matrices) if self.optimizer == "muon" else adamw
        schedule = self._schedule()
        total, changed = schedule.total_steps or 0, bool(self.schedule_changes)
        if self.warmup_steps >= total > 0 and not changed and not typed(self.trainer).fast_dev_run:
            raise UsageError(
                f"--model.warmup_steps {self.warmup_steps}: the schedule has only {total} "
                f"steps. --model.warmup_steps {total // 10} would work."
            )

        # the list of changes grows while the run is timed, so it is looked up at each step
        def factor(step: int) -> float:
            schedule.changes = self.schedule_changes
            return schedule.factor(step)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # --- training -----------------------------------------------------------------------------

    def nats(self, batch: dict[str, Tensor]) -> Tensor:
        """Return a batch's summed nats, a scalar."""
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {key: batch[key] for key in names if key in batch}
        transformer = self._compiled or self.model.base_model
        hidden = transformer(**inputs, use_cache=False).last_hidden_state
        head = self.model.get_output_embeddings()
        return summed_nats(hidden, head.weight, batch["targets"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the micro-batch's share of the step's loss.

        The loss of an optimizer step is summed nats over the targets of its whole global batch;
        Lightning divides by the accumulation and averages over ranks, which is undone here.
        """
        seed_dropout(self.seed, self.global_rank, batch["position"], self.device)
        nats = self.nats(batch)
        detached = nats.detach()
        self._step_nats = detached if self._step_nats is None else self._step_nats + detached
        if batch["ends_step"]:
            self._log_step(self._step_nats, batch)
            self._ended_step = self._step_nats, batch["step_targets"]
            self._step_nats = None
        trainer = self.trainer
        share: float = trainer.accumulate_grad_batches * trainer.world_size / batch["step_targets"]
        # An infinite loss can have finite gradients. So they are none either, on any rank.
        return nats * share * torch.where(detached.isfinite(), 1.0, math.nan)

    def on_train_start(self) -> None:
        """Find the run's last step, and the steps of an epoch, once: both take a loader."""
        self._last_step = self.run_steps() or 0
        self._epoch_steps = typed(self.trainer).datamodule.train_dataloader().num_steps

    def on_train_end(self) -> None:
        """Log the last step, should the run have ended early."""
        self.read_norm()
        self.log_last_step()

    def logs_step(self, step: int) -> bool:
        """Tell whether a step is logged: every n-th, the first (1) and the run's last.

        With ``--trainer.log_every_n_steps 0`` none is.
        """
        every = typed(self.trainer).log_every_n_steps
        return every > 0 and (step % every == 0 or step in (1, self._last_step))

    def _log_step(self, nats: Tensor, batch: dict[str, Any]) -> None:
        step = self.global_step + 1
        numbers = {
            "train/learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
            "train/tokens_seen": batch["tokens_seen"],
            "train/epoch": step / self._epoch_steps,
        }
        self._unlogged = nats, batch["step_targets"], numbers
        if self.logs_step(self.global_step + 1):
            loss = self._log_loss(step)
            self.log("train/loss", loss, logger=False)  # for callbacks that watch it

    def _log_loss(self, step: int) -> float:
        assert self._unlogged is not None
        (nats, targets, numbers), self._unlogged = self._unlogged, None
        total = cast(Tensor, self.trainer.strategy.reduce(nats, reduce_op="sum"))
        self.last_loss = loss = float(total) / targets
        self.step_of_last_loss = step
        perplexity = float(torch.tensor(loss, dtype=torch.float64).exp())  # math.exp would raise
        values = {name: float(value) for name, value in numbers.items()}
        self._to_loggers({"train/loss": loss, "train/perplexity": perplexity} | values, step)
        return loss

    def log_last_step(self) -> None:
        """Log the newest whole step, unless it was; all ranks call it."""
        if self._unlogged is not None and typed(self.trainer).log_every_n_steps > 0:
            self._log_loss(self.global_step)

    def _to_loggers(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log at the step that is being taken; the first is 1, and 0 is before training.

        Lightning's own count stands one lower, and one lower again after a resume.
        """
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.global_step + 1 if step is None else step)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip in every precision and strategy, log the norm before, and see that it is finite.

        Lightning's own clipping refuses fused AdamW in mixed precision.
        """
        self.read_norm()  # of the step before
        by_value = gradient_clip_algorithm == "value"
        limit = math.inf if by_value or not gradient_clip_val else gradient_clip_val
        norm = clip_gradient_norm(self.parameters(), limit)  # of all ranks, on each
        if by_value and gradient_clip_val:
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        is_logged = self.logs_step(self.global_step + 1)
        if is_logged:
            self._to_loggers({"train/grad_norm": float(norm)})
        elif self._unlogged is not None:
            self._unlogged[2]["train/grad_norm"] = norm
        assert self._ended_step is not None
        rate = optimizer.param_groups[0]["lr"]
        self._norm = StepNorm(self.global_step + 1, norm, *self._ended_step, rate)
        can_wait = skips_itself(self, optimizer, norm)
        if (is_logged or not can_wait) and self.read_norm():
            optimizer.zero_grad()  # to None: AdamW passes over what has no gradient, decay and all

    def read_norm(self) -> bool:
        """See that the newest step's gradients are finite, should nobody have seen it yet.

        Returns:
            Whether that step is left out.

        Raises:
            NotFinite: If they are not, unless such steps are to be left out, and not yet many in a
                row; in each process.
        """
        norm, self._norm = self._norm, None
        if norm is None or not self.nonfinite.leaves_out(self.trainer, norm):
            return False
        self._to_loggers({"train/skipped_steps": self.nonfinite.skipped}, norm.step)
        return True

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, and drop the gradients, which the next forward pass does not need.

        Lightning drops them after it, so that they would lie beside its activations.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    # --- validation and test ------------------------------------------------------------------

    def original_bytes(self, split: Literal["validation", "test"]) -> tuple[int | None, str]:
        """Return the bytes of the text that is evaluated; None, and why, where they say nothing."""
        found, reason = typed(self.trainer).datamodule.original_bytes(split)
        of_test = split == "test"
        limit = self.trainer.limit_test_batches if of_test else self.trainer.limit_val_batches
        if found is not None and not (isinstance(limit, float) and limit == 1.0):
            return None, "only a part of the split is evaluated"
        return found, reason

    def _begin_eval(self, split: Literal["validation", "test"], prefix: str) -> None:
        original_bytes, _ = self.original_bytes(split)
        self.eval_metrics = split_metrics(prefix, original_bytes).to(self.device)

    def _end_eval(self) -> None:
        values = self.eval_metrics.compute()
        trains = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        loss = float(values.get("val/loss", 0.0))
        if trains and self.nonfinite.action == "stop" and not math.isfinite(loss):
            raise NotFinite(  # before the checkpoints of this validation are saved
                f"step {self.global_step:,}: val/loss is {loss}. Nothing was saved of this "
                f"validation. {self.nonfinite.remedies(self.trainer)}"
            )
        self.eval_results |= {name: float(value) for name, value in values.items()}
        self.log_dict(
            {name: value.float() for name, value in values.items()},
            sync_dist=True,  # equal on all ranks already; without it Lightning warns
        )
        # the name by which Lightning finds the x axis; outside fit it would take 0
        in_fit = self.trainer.state.fn == "fit"
        step = self.global_step if in_fit else self.trained_steps
        self.log("step", float(step), sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self.read_norm()
        self._begin_eval("validation", "val/")

    def on_test_epoch_start(self) -> None:
        """Begin to count."""
        self._begin_eval("test", "test/")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count a batch."""
        self.eval_metrics.update(self.nats(batch), (batch["targets"] != IGNORED).sum())

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the split's numbers."""
        self._end_eval()

    on_test_epoch_end = on_validation_epoch_end

    # --- prediction ---------------------------------------------------------------------------

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[list[list[int]]]:
        """Continue each prompt.

        Returns:
            For each prompt, for each sample, the new ids.
        """
        if not batch["input_ids"]:  # a rank for which no prompt was left
            return []
        return generate(
            self.model,
            batch["input_ids"],
            self.sampling,
            end_of_text=int(self.model.config.eos_token_id),
            assemble=partial(typed(self.trainer).datamodule.assembler, stop=self.sampling.stop),
        )

    # --- checkpoints --------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the configuration to the checkpoint, which so needs no folder beside it."""
        self.read_norm()
        checkpoint["format"] = FORMAT
        # Lightning keeps the datamodule's state under the name of its class
        data = typed(self.trainer).datamodule
        checkpoint |= checkpoint.pop(type(data).__qualname__, {})
        checkpoint["trainer_settings"] = self._settings()
        checkpoint["skipped_steps"] = self.nonfinite.skipped
        checkpoint["skipped_in_a_row"] = self.nonfinite.in_a_row
        checkpoint["schedule_changes"] = [list(it) for it in self.schedule_changes]
        checkpoint["hf_config"] = self.model.config.to_dict()
        checkpoint["hyper_parameters"]["hf_config"] = checkpoint["hf_config"]
        if self.base_digest is not None:
            keep_adapter(checkpoint, self.base_digest)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See that a run that goes on takes the steps that it would have taken.

        Raises:
            UsageError: If a flag of the trainer contradicts the checkpoint.
        """
        upgrade(checkpoint)  # first of all that read it: the callbacks' states are taken up later
        if self.base_digest is not None:
            check_base(checkpoint, self.base_digest, "--ckpt_path", TRAIN_ON)
        self.trained_steps = checkpoint["global_step"]
        self.nonfinite.skipped = checkpoint["skipped_steps"]
        self.nonfinite.in_a_row = checkpoint["skipped_in_a_row"]
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        # of a killed run config.yaml may know more changes: those to come
        known, done = self.schedule_changes, checkpoint.get("schedule_changes") or []
        self.schedule_changes = [list(it) for it in done]
        take_up(checkpoint, self.trainer, self._settings())
        if known[: len(done)] == done:
            self.schedule_changes = known

    def _settings(self) -> dict[str, Any]:
        return trainer_settings(self.trainer, self.total_steps())
