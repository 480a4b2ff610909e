"""What is watched while a run trains: its start, bar, curves, throughput."""

import csv
import io
import logging
import math
import os
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from gpt2_lightning.data.tokenizer import sampled_vocabulary
from gpt2_lightning.fit.checkpoints import run_checkpoint, typed
from gpt2_lightning.fit.machine import check_agreement
from gpt2_lightning.fit.run_folder import current_run
from gpt2_lightning.fit.stop import EarlyStop, Stopped
from gpt2_lightning.logs import say
from gpt2_lightning.model.gpt2 import count_parameters, training_flops_per_token
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.run_folder import Run
from gpt2_lightning.storage import refusal_of, write_text

log = logging.getLogger(__name__)

SECONDS_OF_A_LINE = 30.0  # between two lines in a log


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with the training loss beside it; without a terminal, a line at times.

    It is gone before the outcome is printed.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=int(Console().is_terminal))  # 0 draws nothing
        self._said = time.monotonic()

    @property
    def sanity_check_description(self) -> str:
        """Name the validation before training by what it is here."""
        return "Step 0"

    def _get_train_description(self, current_epoch: int) -> str:
        """Count epochs from 1, where Lightning shows the first of two as 0/1."""
        epochs = self.trainer.max_epochs
        of = f" of {epochs}" if epochs is not None and epochs > 0 else ""
        # as wide as the bar of a validation, so that neither moves
        return f"Epoch {current_epoch + 1}{of}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the last logged training loss.

        It is a plain number already: Lightning's own way waits for the GPU at every step.
        """
        loss = cast(GPT2Module, pl_module).last_loss
        return {} if loss is None else {"train/loss": loss}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar on, or print a line."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now, module = time.monotonic(), cast(GPT2Module, pl_module)
        if self.is_enabled or not trainer.is_global_zero or not batch["ends_step"]:
            return
        if now - self._said >= SECONDS_OF_A_LINE:
            self._said = now
            loss = ""
            if module.last_loss is not None:
                loss = f", train/loss {module.last_loss:.3f} at step {module.step_of_last_loss:,}"
            last = module.run_steps()
            of = "" if last is None else f" of {last:,}"
            say(f"Step {trainer.global_step:,}{of}{loss}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the screen to what is printed at the end."""
        self.teardown(trainer, pl_module, "fit")


class Baseline(Callback):
    """Logs the validation numbers at step 0, so that a curve begins at the untrained model's.

    Lightning's check before training is widened to the whole split
    (``--trainer.num_sanity_val_steps -1``, the default here) and its result is kept.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what Lightning would throw away."""
        if trainer.num_sanity_val_steps != float("inf"):
            return  # a part of the split says nothing
        for logger in trainer.loggers:
            logger.log_metrics(cast(GPT2Module, pl_module).eval_results, step=0)
            logger.save()


class StartSummary(Callback):
    """Says parameters, tokens per optimizer step and steps, and where the schedule ends."""

    def __init__(self) -> None:
        self._trains = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the sizes of model, text, step and schedule, and what looks wrong with them."""
        check_agreement(trainer)
        module = cast(GPT2Module, pl_module)
        data = typed(trainer).datamodule
        batches = data.train_dataloader()
        blocks = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        total = module.total_steps()
        trained = sum(it.numel() for it in module.parameters() if it.requires_grad)
        log.info(
            "Training %s on %s.", module.hparams["pretrained"] or "from scratch", data.described
        )
        log.info(
            "%s parameters%s; %s tokens to predict in %s blocks of %d; a step takes %s blocks (%s "
            "tokens), an epoch %s steps, the schedule %s.",
            f"{count_parameters(module.model):,}",
            f", of which {trained:,} are trained ({_lora(module)})" if module.lora.rank else "",
            f"{batches.blocks.targets:,}",
            f"{len(batches.blocks):,}",
            data.block_size,
            f"{blocks:,}",
            f"{blocks * data.block_size:,}",
            f"{batches.num_steps:,}",
            "fits the time" if total is None else f"{total:,}",
        )
        if module.optimizer == "muon" and module.hparams["pretrained"]:
            log.info(
                "--model.optimizer muon on pretrained weights: others found it behind adamw "
                "(https://arxiv.org/abs/2605.10468); here it was behind at a rate of 1e-3 and "
                "ahead at 3e-3. Try both on your text."
            )
        store = data.stores["train"]
        if store.manifest.lost:
            log.info(
                "The tokenizer does not give back all of the text: %s are lost for good, in "
                "training and in what the model writes.",
                ", ".join(store.manifest.lost),
            )
        trained = data.tokenizer_name is None
        if (note := sampled_vocabulary(data.tokenizer, store.ids, trained=trained)) is not None:
            log.warning("%s", note)
        here, cores = trainer.world_size // trainer.num_nodes, os.cpu_count() or 1
        if trainer.strategy.root_device.type == "cpu" and here > cores:
            log.warning(
                "--trainer.devices %d: so many processes share %d cores. --trainer.devices 1 is "
                "likely to be faster.",
                here,
                cores,
            )
        if total is not None and 0 < trainer.max_steps < total and not module.fits_time:
            log.info(
                "--trainer.max_steps %d ends the run before the learning rate's schedule; "
                "--model.schedule_steps %d would end both together.",
                trainer.max_steps,
                trainer.max_steps,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where a run goes on."""
        step, module = trainer.global_step, cast(GPT2Module, pl_module)
        last = module.run_steps()
        if step > 0 and (last is None or step < last) and not trainer.should_stop:
            self._trains = True
            log.info("Going on after step %s.", f"{step:,}")
        self._trains |= step == 0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that there was nothing to do, and how to train longer."""
        if self._trains:
            return
        step, run = trainer.global_step, current_run(trainer)
        early = next((it for it in typed(trainer).callbacks if isinstance(it, EarlyStop)), None)
        if early is not None and early.reached:
            longer = f"--early_stopping.patience with more than {early.patience} goes on"
        elif step < (cast(GPT2Module, pl_module).total_steps() or 0):
            longer = f"--trainer.max_steps with more than {step} goes on"
        else:
            folder = run.folder if run else "RUN"
            longer = (
                f"begin a new run with these weights: --model.pretrained {folder}, without "
                "--ckpt_path"
            )
        log.info(
            "Nothing is left to train: the run is finished, after step %s. To train longer, %s.",
            f"{step:,}",
            longer,
        )


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
        block_size = typed(trainer).datamodule.block_size
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
        if self.tokens and typed(trainer).log_every_n_steps > 0:
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


LAYOUT = {
    "loss": {"nats per token": ["Multiline", ["train/loss", "val/loss"]]},
    "perplexity": {"per token": ["Multiline", ["train/perplexity", "val/perplexity"]]},
    "speed": {"predicted tokens/s": ["Multiline", ["train/tokens_per_second"]]},
}

# the flags in which runs are compared most; those of a group that a run does not use are left out
SETTINGS = {
    "model": (
        "optimizer",
        "learning_rate",
        "schedule",
        "warmup_steps",
        "weight_decay",
        "dropout",
        "attention_dropout",
        "pretrained",
    ),
    "model.architecture": ("layers", "heads", "width"),
    "model.lora": ("rank",),
    "data": ("batch_size", "block_size", "source", "subset", "cleaning", "blocks", "vocab_size"),
    "trainer": (
        "accumulate_grad_batches",
        "gradient_clip_val",
        "max_epochs",
        "max_steps",
        "precision",
        "world_size",
    ),
}

# what runs differ in most; TensorBoard ticks the first five columns, and no others
TICKED = (
    "model.learning_rate",
    "data.batch_size",
    "data.block_size",
    "trainer.max_epochs",
    "model.pretrained",
)

NUMBERS = {"dropout", "attention_dropout", "gradient_clip_val", "max_epochs", "vocab_size"}


class Curves(Callback):
    """Fills TensorBoard's custom scalars and HPARAMS, and writes ``metrics.csv`` from the events.

    HPARAMS takes the last value of a curve. So that runs can be compared by the model that each
    has kept, ``val/loss_best`` is the validation loss of the best checkpoint, at its step; where
    another number chose it, that number's ``_best`` stands there, too.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put training and validation on one chart."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(LAYOUT)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell HPARAMS of the run; where it was told before, TensorBoard keeps to that."""
        told = trainer.is_global_zero and typed(trainer).enable_autolog_hparams
        for logger in trainer.loggers if told else []:
            settings = settings_of_run(trainer, pl_module)
            if isinstance(logger, TensorBoardLogger):
                _add_settings(logger, settings, _compared_by(trainer))
            elif trainer.ckpt_path is None:  # MLflow lets none be changed later
                said = {flag: value for flag, value in settings.items() if value is not None}
                logger.log_hyperparams(said)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write out what was logged, before the checkpoint that a run goes on from."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
                elif isinstance(logger, CSVLogger):
                    logger.save()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best figures and the table."""
        _log_best(trainer)
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write what there is; a disk that has refused is not asked to speak twice."""
        # TensorBoard's writer raises the refusal of its thread again, wrapped
        again = suppress(OSError, ValueError, RuntimeError)
        with again if refusal_of(exception) else nullcontext():
            _log_best(trainer)
            self._write(trainer)

    @staticmethod
    def _write(trainer: Trainer) -> None:
        """Write the table, unless a CSV logger of the same folder does: it is the same table."""
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        by_logger = {it.log_dir for it in trainer.loggers if isinstance(it, CSVLogger)}
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
            elif isinstance(logger, TensorBoardLogger) and Path(logger.log_dir).is_dir():
                logger.experiment.flush()
                if logger.log_dir not in by_logger:
                    run, folder = current_run(trainer), Path(logger.log_dir)
                    write_metrics_csv(run if run and run.folder == folder else Run(folder))


def _lora(module: GPT2Module) -> str:
    kind = module.lora.quantize
    return f"LoRA, beside matrices in {kind}" if kind else "LoRA"


def write_metrics_csv(run: Run) -> None:
    """Write a run's scalars as ``metrics.csv``: one row a step, one column a name."""
    table = run.scalars
    names = sorted({name for row in table.values() for name in row})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["step", *names])
    writer.writeheader()
    writer.writerows({"step": step, **row} for step, row in sorted(table.items()))
    write_text(run.metrics, text.getvalue())


def settings_of_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return a run's `SETTINGS` by their flags; None where a flag says nothing."""
    model = cast(dict[str, Any], pl_module.hparams)
    groups: dict[str, dict[str, Any]] = {
        "model": model,
        "model.architecture": {} if model["pretrained"] else model["architecture"],
        "model.lora": model["lora"] if model["lora"]["rank"] else {},
        "data": dict(typed(trainer).datamodule.hparams),
        "trainer": {name: getattr(trainer, name) for name in SETTINGS["trainer"]},
    }
    return {
        f"{group}.{name}": groups[group].get(name)
        for group, names in SETTINGS.items()
        for name in names
    }


def _compared_by(trainer: Trainer) -> list[str]:
    own = run_checkpoint(trainer)
    chosen = ["val/loss_best"]
    if own is not None and own.monitor not in (None, "val/loss"):
        chosen.insert(0, f"{own.monitor}_best")
    return [*chosen, "val/loss", "val/perplexity", "val/bits_per_byte", "train/loss"]


def _add_settings(logger: TensorBoardLogger, settings: dict[str, Any], metrics: list[str]) -> None:
    """Write the summaries of HPARAMS into the run's own events.

    ``SummaryWriter.add_hparams`` would make a folder of its own for them, and Lightning's
    ``log_hyperparams`` wants the metrics' values, which only the end knows.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    # TensorBoard takes the columns of all runs from one of them: a run that leaves a flag out
    # names its column as well
    columns = {flag: _filler(flag) if it is None else it for flag, it in settings.items()}
    experiment, _, _ = hparams(columns, dict.fromkeys(metrics, 0.0))
    # it sorts them by `differs`, which it does not work out where a run names the columns, and name
    metadata = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(metadata.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in TICKED
    metadata.content = content.SerializeToString()
    _, begin, _ = hparams(settings, {})
    for summary in (experiment, begin):
        logger.experiment.file_writer.add_summary(summary)


def _filler(flag: str) -> float | str:
    """Return a value of a flag's type."""
    group, _, name = flag.rpartition(".")
    return 0.0 if group in ("model.architecture", "model.lora") or name in NUMBERS else ""


def _log_best(trainer: Trainer) -> None:
    own = run_checkpoint(trainer)
    if trainer.state.fn != "fit" or own is None or own.best is None:
        return
    run, step = current_run(trainer), own.best["step"]
    # of a run that goes on with the best that it had
    told = Run(run.folder).scalars.get(step, {}) if run and trainer.ckpt_path else {}
    known = own.best["figures"] | {own.monitor or "val/loss": own.best["value"]}
    figures = {f"{name}_best": known.get(name) for name in ("val/loss", own.monitor) if name}
    measured = {
        name: value
        for name, value in figures.items()
        # TensorBoard keeps them in fp32
        if value is not None and not math.isclose(told.get(name, math.nan), value, rel_tol=1e-6)
    }
    for logger in trainer.loggers if measured else []:
        logger.log_metrics(measured, step=step)
