"""What a run leaves at its end: hf/, report.html and the table on the screen."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from rich.console import Console
from rich.table import Table

from gpt2_lightning.checkpoint import FIGURES_KEY, read_checkpoint, step_of
from gpt2_lightning.data.token_store import xz_bits_per_byte
from gpt2_lightning.errors import UsageError
from gpt2_lightning.export.hf_folder import write_hf_folder
from gpt2_lightning.fit.checkpoints import is_sharded, run_checkpoint, typed
from gpt2_lightning.fit.run_folder import current_run
from gpt2_lightning.fit.sharding import whole_weights
from gpt2_lightning.fit.stop import EarlyStop, Stopped
from gpt2_lightning.fit.time_limit import TimeLimit
from gpt2_lightning.generate.text_model import TextModel, load_checkpoint
from gpt2_lightning.logs import say
from gpt2_lightning.model.gpt2 import from_config, merged, weights_of
from gpt2_lightning.model.lora import ADAPTER, adapter_of, base_of, save_adapter
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.nonfinite import NotFinite
from gpt2_lightning.report.page import write_page
from gpt2_lightning.report.tables import MEASURES, chosen_by, figure
from gpt2_lightning.run_folder import HF_RECORD, Run, run_of
from gpt2_lightning.storage import refusal_of

log = logging.getLogger(__name__)


class HFFolder(Callback):
    """Writes ``hf/`` into the run folder at the end of fit, and when it is interrupted.

    The best checkpoint is taken, else the last one, else the weights as they stand.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder."""
        self._write(trainer, cast(GPT2Module, pl_module))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave a run folder that can be used, if training had begun."""
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit | NotFinite)
        if stopped and trainer.state.fn == "fit" and trainer.global_step > 0:
            trainer.strategy.checkpoint_io.teardown()  # an asynchronous one has saved all then
            # where they are no longer numbers, the weights as they stand are no result
            if not isinstance(exception, NotFinite):
                self._write(trainer, cast(GPT2Module, pl_module))
            elif _kept(trainer):
                with suppress(UsageError):  # the last checkpoint may hold them
                    self._write(trainer, cast(GPT2Module, pl_module), only_kept=True)

    def _write(self, trainer: Trainer, module: GPT2Module, *, only_kept: bool = False) -> None:
        run = current_run(trainer)
        if run is None:
            return
        weights: dict[str, Any] = {}
        # all ranks are here, and those of another machine may see no checkpoint
        needed = is_sharded(trainer) and not only_kept
        if needed and trainer.strategy.broadcast(_kept(trainer) is None):
            weights = whole_weights(module.model)
        if not trainer.is_global_zero:
            return
        kept = _kept(trainer)
        adapter = _adapter(module, kept) if module.lora.rank else {}
        found = self._outcome(trainer, module, weights, adapter)
        record = {
            "file": kept and kept.name,
            "step": step_of(kept) if kept else trainer.global_step,
        }

        def finish(written: Path) -> None:
            (written / HF_RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
            if adapter:
                base = module.hparams["pretrained"]
                save_adapter(written / ADAPTER, found.model, module.lora, adapter, base)

        write_hf_folder(run.hf, found.model, found.tokenizer, module.sampling, finish)

    @staticmethod
    def _outcome(
        trainer: Trainer, module: GPT2Module, weights: dict[str, Any], adapter: dict[str, Any]
    ) -> TextModel:
        kept = _kept(trainer)
        if kept is not None and not adapter:
            return load_checkpoint(kept)
        config = module.model.config.to_dict()
        if adapter:  # its base may have been moved or removed since the run began
            model = merged(base_of(module.model), module.lora, adapter, config)
        else:
            model = from_config(config, attention="sdpa")
            model.load_state_dict(weights or module.model.state_dict())
        return TextModel(model, typed(trainer).datamodule.tokenizer)


def _adapter(module: GPT2Module, kept: Path | None) -> dict[str, Any]:
    """Return the weights of the LoRA adapter that stands for the run, by their names."""
    if kept is None:
        return adapter_of(module.model)
    return weights_of(read_checkpoint(kept), str(kept))


def _kept(trainer: Trainer) -> Path | None:
    """Return the best checkpoint, else the last one; None where none is kept."""
    if (own := run_checkpoint(trainer)) is not None:
        for path in (own.best_model_path, own.last_model_path):
            if path and Path(path).exists():  # a sharded one is a folder
                return Path(path)
    return None


class Report(Callback):
    """Writes ``report.html`` from the run folder at the end of fit, and when it is stopped.

    It stands after the callbacks that write what it reads.
    """

    def __init__(self) -> None:
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note that there is something to report."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page."""
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write it of a run that was stopped, too."""
        if self._trained and isinstance(exception, KeyboardInterrupt | SystemExit | NotFinite):
            self._write(trainer)

    @staticmethod
    def _write(trainer: Trainer) -> None:
        run = current_run(trainer)
        if not trainer.is_global_zero or run is None:
            return
        try:
            read = Run(run.folder)  # its files have been written since `run` was made
            read.scalars = run.scalars  # metrics.csv was made of them
            write_page([read], run.report)
        except Exception as error:  # the model is trained and saved: no reason to end in an error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning(
                "%s was not written (%s). To try again: python -m gpt2_lightning report %s",
                run.report,
                reason,
                run.folder,
            )
        else:
            say(f"Report:     {run.report}")


class RunSummary(Callback):
    """Prints the validation numbers before training, at best and at last, and where the model is.

    Where the text is short enough, what xz needs for it stands beside them. After `validate` and
    `test`, it prints their numbers.
    """

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self._xz: float | None = None
        self._told: set[str] = set()  # splits of which it was said why they have no bits per byte

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what will be missing; so does the next."""
        self._say_what_lacks(cast(GPT2Module, pl_module), "validation", "val/")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it of the test split."""
        self._say_what_lacks(cast(GPT2Module, pl_module), "test", "test/")

    def _say_what_lacks(
        self, module: GPT2Module, split: Literal["validation", "test"], prefix: str
    ) -> None:
        found, reason = module.original_bytes(split)
        if found is None and split not in self._told:
            self._told.add(split)
            log.info("%sbits_per_byte is not logged: %s.", prefix, reason)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers before training, if they are the whole split's."""
        if trainer.num_sanity_val_steps == float("inf"):
            self.before = dict(cast(GPT2Module, pl_module).eval_results)
            _say(trainer, self.before)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the numbers of this validation."""
        if trainer.state.fn == "validate":
            self._print_numbers(trainer, "Validation", "val/")
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.last = dict(cast(GPT2Module, pl_module).eval_results)
        _say(trainer, self.last)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the numbers of the test split."""
        self._print_numbers(trainer, "Test", "test/")

    @property
    def state_key(self) -> str:
        """Name the state in a checkpoint."""
        return FIGURES_KEY

    def state_dict(self) -> dict[str, Any]:
        """Keep the numbers for a run that goes on."""
        return {"before": self.before, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the numbers again."""
        self.before, self.last = state_dict["before"], state_dict["last"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table, where the model is, and why the run ended before its schedule."""
        if not trainer.is_global_zero:
            return
        data = typed(trainer).datamodule
        best = best_of(trainer)
        rows = {"before": self.before, "best": best["figures"] if best else {}, "last": self.last}
        if "val/bits_per_byte" in self.last and (xz := self.xz_bits_per_byte(data)) is not None:
            rows["xz"] = {"val/bits_per_byte": xz}
        if any(rows.values()):
            _show(_table("Validation", rows, "val/", data, best))
        self._say_place(trainer)
        module, (cut_by, on) = cast(GPT2Module, pl_module), ended_by(trainer)
        if skipped := module.nonfinite.skipped:
            say(
                f"Left out: {skipped:,} of {trainer.global_step:,} steps, whose loss or gradients "
                "were not finite (--model.on_nonfinite skip)."
            )
        total = module.total_steps() if cut_by else module.run_steps()
        if total is None or trainer.global_step < total:
            of = "" if total is None else f" of {total:,}"
            by = f", by {cut_by}. --ckpt_path last {on}." if cut_by else "."
            say(f"Ended after step {trainer.global_step:,}{of}{by}")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Print where the model of an interrupted run is, and how it goes on."""
        refused = isinstance(exception, UsageError) and not isinstance(exception, NotFinite)
        if refused or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        self._say_place(trainer)
        run = current_run(trainer)
        if (full := refusal_of(exception)) and full.filename is None:
            # TensorBoard's thread tells no name; before the run folder is settled, its logger does
            folders = [run and run.folder, *(logger.log_dir for logger in trainer.loggers)]
            full.filename = next((str(Path(it)) for it in folders if it), None)
        if run is None or run.last_checkpoint() is None:
            return
        if isinstance(exception, Stopped):
            say(f"Stopped after step {trainer.global_step:,}. Go on with it:")
        elif full:
            say("What was saved before is whole. Go on with it when the disk allows:")
        else:
            return
        say(f"            python -m gpt2_lightning fit --ckpt_path {run.folder}")

    @staticmethod
    def _say_place(trainer: Trainer) -> None:
        run = current_run(trainer)
        if run is None or not run.hf.is_dir() or run.newer_than_hf() is not None:
            return
        say(f"{'Best model' if best_of(trainer) else 'Last model'}: {run.hf}")
        say(f'Use it:     python -m gpt2_lightning generate --model {run.folder} --prompt "..."')

    def xz_bits_per_byte(self, data: Any) -> float | None:
        """Return what xz needs for the validation split; it is compressed once in a run."""
        if self._xz is None:
            splits = data.stores["train"], data.stores["validation"]
            self._xz = xz_bits_per_byte(*splits, data.tokenizer)
        return self._xz

    @staticmethod
    def _print_numbers(trainer: Trainer, title: str, prefix: str) -> None:
        if not trainer.is_global_zero:
            return
        file = trainer.ckpt_path
        label = "model"
        if isinstance(file, str | Path):
            run = run_of(Path(file))
            label = Path(file).name if run is None else f"{run.folder.name}, {Path(file).stem}"
        rows = {label: cast(GPT2Module, trainer.lightning_module).eval_results}
        _show(_table(title, rows, prefix, typed(trainer).datamodule))


def best_of(trainer: Trainer) -> dict[str, Any] | None:
    """Return what is known of the checkpoint that a number has chosen; see `RunCheckpoint.best`."""
    own = run_checkpoint(trainer)
    return own.best if own is not None and own.monitor is not None else None


def ended_by(trainer: Trainer) -> tuple[str | None, str]:
    """Return what ended a run before its schedule, if something has, and what goes on with it."""
    total = cast(GPT2Module, trainer.lightning_module).total_steps()
    if total is not None and trainer.global_step >= total:
        return None, ""
    for callback in typed(trainer).callbacks:
        if isinstance(callback, EarlyStop) and callback.reached:
            return str(callback), "with more patience goes on"
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            reason = callback.stopping_reason_message.removesuffix("Signaling Trainer to stop.")
            return f"{type(callback).__name__} ({reason.strip(' .')})", "goes on without it"
    if trainer.global_step == trainer.max_steps:
        return "--trainer.max_steps", "with a greater one goes on"
    for callback in typed(trainer).callbacks:
        if isinstance(callback, TimeLimit) and callback.reached:
            return "--trainer.max_time", "goes on for as long again"
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return type(callback).__name__, "with a longer one goes on"
    return None, ""


def _say(trainer: Trainer, numbers: dict[str, float]) -> None:
    """Print a validation in a line, above the bar, or into a log that has no bar."""
    if not trainer.is_global_zero:
        return
    found = {name: numbers.get(f"val/{key}") for key, name in MEASURES.items()}
    words = [f"{name} {figure(value)}" for name, value in found.items() if value is not None]
    say(f"Step {trainer.global_step:,}: {', '.join(words)}")


def _show(table: Table) -> None:
    console = Console()
    with console.capture() as drawn:  # itself it would end the run where the screen has gone
        console.print(table)
    say(drawn.get().rstrip("\n"))


def _table(
    title: str,
    rows: dict[str, dict[str, float]],
    prefix: str,
    data: Any,
    best: dict[str, Any] | None = None,
) -> Table:
    notes = []
    if best is not None:
        notes.append(f"best: {chosen_by(best)}")
    before, after = (rows.get(label, {}).get("val/loss") for label in ("before", "best"))
    if before is not None and after is not None and before < after:
        notes.append(
            "before: better than every validation since; a lower --model.learning_rate may help"
        )
    if rows.get("xz"):
        notes.append(
            "xz: a compressor that has seen the training text; hard to beat on little text"
        )
    if not data.cleaner.lossless:
        notes.append(
            f"of text that --data.cleaning {data.cleaner.name} has cut: not comparable with "
            "published figures"
        )
    table = Table(
        title=title, title_justify="left", caption="\n".join(notes), caption_justify="left"
    )
    table.add_column("")
    for name in MEASURES.values():
        table.add_column(name, justify="right")
    for label, row in rows.items():
        if row:
            table.add_row(label, *(figure(row.get(prefix + name)) for name in MEASURES))
    return table
