"""RunCheckpoint: last.ckpt is the last state, the best is best by its monitor; each is whole."""

import shutil
import time
from datetime import timedelta
from pathlib import Path
from string import Formatter
from typing import Any, Literal, Protocol, cast

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.profilers import Profiler
from torch import Tensor

from gpt2_lightning.checkpoint import (
    BEST_KEY,
    FIGURES_KEY,
    is_whole,
    read_checkpoint,
    read_sharded,
    state_of,
)
from gpt2_lightning.checkpoint import is_sharded as is_in_shards
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.sharding import FSDP2Strategy
from gpt2_lightning.logs import say
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.storage import whole_file


class TypedTrainer(Protocol):
    """What Lightning's Trainer has without declaring it, so that a type checker misses it."""

    callbacks: list[Callback]
    enable_autolog_hparams: bool
    datamodule: WikiTextDataModule
    fast_dev_run: bool | int
    log_every_n_steps: int
    overfit_batches: int | float
    profiler: Profiler


def typed(trainer: Trainer) -> TypedTrainer:
    """Return the same trainer, with the types of what it does not declare."""
    return cast(TypedTrainer, trainer)


def is_sharded(trainer: Trainer) -> bool:
    """Tell whether the model's weights are parted among the processes.

    One process alone cannot use the model then: it would wait for the others' parts for ever.
    """
    return isinstance(trainer.strategy, FSDP2Strategy)


class RunCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoints of a run, by one number, and its last state.

    ``last.ckpt`` is the state at the newest validation and at the end, whatever the monitor says
    (Lightning renews it only in a step that is also among the best); in a run without validation
    that of the newest epoch's end. The best are chosen at
    validations. Other ModelCheckpoints may be added; this one alone decides what "best" means in
    ``hf/``, in the table at the end, in the report, and for ``--ckpt_path best``.

    Args:
        save_last: Whether to keep ``last.ckpt``, from which training goes on exactly. ``link`` is
            taken as true: a link would not be the last state.
        every_n_train_steps: Renew ``last.ckpt`` every so many optimizer steps as well; with
            ``save_top_k`` -1 a ``stepN.ckpt`` of each is kept.
        train_time_interval: The same whenever this much time has passed.
        **kwargs: As for Lightning's ModelCheckpoint.

    Attributes:
        best: What is known of the best checkpoint, as plain values; None where none is kept.
            ``file`` is its name, ``step`` its optimizer step, ``monitor``, ``mode`` and ``value``
            what it was chosen by, ``figures`` the numbers of the validation at that step.
        step_of_last: The optimizer step that ``last.ckpt`` holds, if this process has written it.
    """

    def __init__(
        self,
        save_last: bool | Literal["link"] | None = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_last=None, **kwargs)
        self.keeps_last = bool(save_last)
        self.best: dict[str, Any] | None = None
        self.step_of_last: int | None = None
        self._every = every_n_train_steps or 0
        self._interval = train_time_interval
        self._since = time.monotonic()
        self._figures: dict[str, float] = {}  # of the validation at this step
        self._saved: str | None = None  # a file that holds the state at this validation
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Name the state so that no other ModelCheckpoint's can be taken for it."""
        return BEST_KEY

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return Path(cast(str, self.dirpath))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and see that no other callback writes the same ``last.ckpt``.

        Raises:
            UsageError: If one would.
        """
        super().setup(trainer, pl_module, stage)
        self.last_model_path = ""
        for other in typed(trainer).callbacks:
            if not isinstance(other, ModelCheckpoint) or other is self or not other.save_last:
                continue
            given = other.dirpath
            if given is None or Path(given).absolute() == self.folder.absolute():
                raise UsageError(
                    "--trainer.callbacks: a ModelCheckpoint with save_last would write the run's "
                    f"own {self.folder / 'last.ckpt'}. Leave its save_last out "
                    "(--checkpoint.save_last true keeps the last state), or give it a dirpath."
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that what the flags name can be measured; say what a run without validation keeps.

        Raises:
            UsageError: If it cannot.
        """
        _, reason = typed(trainer).datamodule.original_bytes("validation")
        named = {"monitor": [self.monitor or ""], "filename": names_in(self.filename or "")}
        for flag, names in named.items():
            if "val/bits_per_byte" in names and reason:
                raise UsageError(
                    f"--checkpoint.{flag}: val/bits_per_byte is not measured ({reason}). "
                    "val/loss would work."
                )
        if not trainer.enable_validation and self._saves(trainer) and trainer.is_global_zero:
            saved = "Nothing is saved before the run's end (--checkpoint.save_last false)."
            if self.keeps_last:
                saved = "last.ckpt is saved at the end of each epoch."
                if not self._every and self._interval is None:
                    saved += " --checkpoint.every_n_train_steps N saves it more often."
            say(
                "--trainer.limit_val_batches 0: without validation no checkpoint is the best. "
                + saved
            )

    # --- when something is saved --------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best, and the last state."""
        if not self._saves(trainer) or trainer.sanity_checking:
            return
        self._figures = dict(cast(GPT2Module, pl_module).eval_results)
        self._saved = None
        self._last_global_step_saved = -1  # private: what was saved before the validation lacks it
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
        else:  # Lightning would end the run
            self._warn(
                f"--checkpoint.monitor {self.monitor}: it was not logged up to step "
                f"{trainer.global_step:,}. Without it no checkpoint is the best."
            )
        if self.keeps_last:
            self.save_last_state(trainer, copy_of=self._saved)
        self._figures = {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save between validations, at whole optimizer steps."""
        if not batch["ends_step"] or not self._saves(trainer):
            return
        due = self._every > 0 and trainer.global_step % self._every == 0
        if self._interval is not None:
            passed = time.monotonic() - self._since >= self._interval.total_seconds()
            if trainer.strategy.broadcast(passed):  # all ranks have to agree
                due, self._since = True, time.monotonic()
        due = due or (trainer.is_last_batch and not trainer.enable_validation)
        if not due or validation_is_due(trainer, batch_idx):  # which saves this very step
            return
        file = None
        if self.save_top_k == -1:
            file = str(self.folder / f"step{trainer.global_step}{self.FILE_EXTENSION}")
            self._save_checkpoint(trainer, file)
        if self.keeps_last:
            self.save_last_state(trainer, copy_of=file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: the validation, or the last step, has done so; a run goes on from there."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, where no validation has; also of a run that would keep nothing else."""
        none_kept = self.save_top_k != 0 and not self.best_model_path
        ended = trainer.global_step > 0 and self.step_of_last != trainer.global_step
        if self._saves(trainer) and ended and (self.keeps_last or none_kept):
            self.save_last_state(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save nothing: in the middle of a step there is no state to go on from."""

    def save_last_state(
        self, trainer: Trainer, *, copy_of: str | None = None, weights_only: bool | None = None
    ) -> None:
        """Save ``last.ckpt``.

        Args:
            trainer: The trainer.
            copy_of: A checkpoint of this very state, which is copied instead of made again.
            weights_only: Whether to leave out what training needs to go on; None means as
                ``save_weights_only`` says.
        """
        last = self.folder / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        self.last_model_path = str(last)
        if copy_of is not None and _can_be_copied(trainer):
            if trainer.is_global_zero:
                if last.is_dir():  # of shards, from before --trainer.strategy was changed
                    shutil.rmtree(last)
                with whole_file(last, replace_link=True) as target, open(copy_of, "rb") as source:
                    shutil.copyfileobj(source, target, 16 << 20)
            trainer.strategy.barrier("last.ckpt")
        else:
            only = self.save_weights_only if weights_only is None else weights_only
            trainer.save_checkpoint(last, weights_only=only)
        self.step_of_last = trainer.global_step

    def _saves(self, trainer: Trainer) -> bool:
        keeps = self.dirpath is not None and (self.keeps_last or self.save_top_k != 0)
        return keeps and trainer.state.fn == "fit" and not typed(trainer).fast_dev_run

    def _warn(self, line: str) -> None:
        if (begin := line.split(":")[0]) not in self._warned:
            self._warned.add(begin)
            say(line)

    # --- which is the best --------------------------------------------------------------------

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Tell whether a value is among the best; what is no finite number never is."""
        if current is not None and not current.isfinite():
            self._warn(
                f"--checkpoint.monitor {self.monitor}: it is {float(current)} at step "
                f"{trainer.global_step:,}, which is not kept as the best."
            )
            return False
        return super().check_monitor_top_k(trainer, current)

    def format_checkpoint_name(
        self,
        metrics: dict[str, Tensor],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Name a checkpoint; with its step alone where a number of the name was not measured.

        Lightning would write a 0 in the place of that number.
        """
        wanted = names_in(filename or self.filename or "")
        if missing := [name for name in wanted if name not in metrics]:
            filename = f"step{int(metrics['step'])}"
            self._warn(
                f"--checkpoint.filename: {', '.join(missing)} was not logged up to step "
                f"{metrics['step']:,.0f}, so the checkpoint is named {filename}. Logged were "
                f"{', '.join(sorted({'epoch', *metrics}))}."
            )
        return super().format_checkpoint_name(metrics, filename, ver, prefix)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Save a checkpoint, in which already stands whether it is the best.

        Private in Lightning, and the one place through which it saves; tests hold that.
        """
        if filepath == self.best_model_path and self._figures:
            score = self.best_model_score
            self.best = {
                "file": Path(filepath).name,
                "step": trainer.global_step,
                "monitor": self.monitor,
                "mode": self.mode,
                "value": None if score is None else float(score),
                "figures": self._figures,
            }
        super()._save_checkpoint(trainer, filepath)
        self._saved = filepath

    # --- a run that goes on -------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and what is known of the best."""
        return super().state_dict() | {"mode": self.mode, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `on_load_checkpoint` has left."""
        super().load_state_dict(state_dict)
        self.best = state_dict["best"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the best of a run that goes on from where its folder is now.

        Another monitor, or a checkpoint from outside the run folder, begins without a best.
        """
        state = checkpoint["callbacks"].pop(BEST_KEY, None)
        file = Path(str(trainer.ckpt_path)).absolute()
        if state is None or self.dirpath is None or file.parent != self.folder.absolute():
            return
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            checkpoint["callbacks"][BEST_KEY] = self._whole_ones(state)

    def _whole_ones(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state whose checkpoints are all there, under the names that they have now."""
        here = {name: str(self.folder / Path(name).name) for name in state["best_k_models"]}
        found = {
            here[name]: value
            for name, value in state["best_k_models"].items()
            if is_whole(Path(here[name]))
        }
        best = str(self.folder / Path(state["best_model_path"]).name)
        if self.monitor is not None or not is_whole(Path(best)):
            order = min if self.mode == "min" else max
            best = order(found, key=lambda name: found[name], default="")
        worst = max if self.mode == "min" else min
        kth = worst(found, key=lambda name: found[name], default="")
        return state | {
            "dirpath": self.dirpath,
            "best_k_models": found,
            "best_model_path": best,
            "best_model_score": found.get(best),
            "kth_best_model_path": kth,
            "kth_value": found.get(kth, self.kth_value),
            "last_model_path": "",
            "best": self._known_of(best, found.get(best), state["best"]),
        }

    def _known_of(
        self, best: str, value: Tensor | None, known: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        if not best or (known and known["file"] == Path(best).name):
            return known if best else None
        content = read_checkpoint(Path(best))
        return {
            "file": Path(best).name,
            "step": content["global_step"],
            "monitor": self.monitor,
            "mode": self.mode,
            "value": None if value is None else float(value),
            "figures": state_of(content, FIGURES_KEY).get("last", {}),
        }


def names_in(filename: str) -> list[str]:
    """Return the numbers that a pattern such as ``{step}-{val/loss:.3f}`` names.

    Raises:
        ValueError: If its braces do not pair.
    """
    return [name for _, name, _, _ in Formatter().parse(filename) if name is not None]


def run_checkpoint(trainer: Trainer) -> RunCheckpoint | None:
    """Return the run's own; `Trainer.checkpoint_callback` is the first, which a user may add."""
    return next((it for it in typed(trainer).callbacks if isinstance(it, RunCheckpoint)), None)


def validation_is_due(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether Lightning validates after this micro-batch."""
    if not trainer.enable_validation or not isinstance(every := trainer.val_check_batch, int):
        return False
    if (by_epoch := trainer.check_val_every_n_epoch) is None:
        return (trainer.fit_loop.total_batch_idx + 1) % every == 0
    return (trainer.current_epoch + 1) % by_epoch == 0 and (batch_idx + 1) % every == 0


def _can_be_copied(trainer: Trainer) -> bool:
    """Tell whether a checkpoint that was saved is one file, and already there."""
    io, strategy = trainer.strategy.checkpoint_io, trainer.strategy
    in_shards = isinstance(strategy, FSDP2Strategy) and strategy.saves_shards
    return isinstance(io, WholeCheckpoints) and not io.behind and not in_shards


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads those in shards, too.

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

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; of one in shards the weights alone, by which a verb can measure."""
        if is_in_shards(Path(path)):
            return read_sharded(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)

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
