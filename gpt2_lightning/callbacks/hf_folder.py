"""The run's model: the best one, in Hugging Face format."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.callbacks.checkpoint import run_checkpoint
from gpt2_lightning.callbacks.run_folder import run_folder
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.checkpoint import HF_RECORD, load_checkpoint, step_of
from gpt2_lightning.inference.hf_folder import write_hf_folder
from gpt2_lightning.inference.text_model import TextModel
from gpt2_lightning.model.causal_lm import from_config
from gpt2_lightning.model.module import GPT2Module, NotFinite


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
                    self._write(trainer, cast(GPT2Module, pl_module))

    def _write(self, trainer: Trainer, module: GPT2Module) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        found = self._outcome(trainer, module)
        kept = _kept(trainer)
        record = {
            "file": kept and kept.name,
            "step": step_of(kept) if kept else trainer.global_step,
        }

        def finish(written: Path) -> None:
            (written / HF_RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")

        write_hf_folder(folder / "hf", found.model, found.tokenizer, module.sampling, finish)

    @staticmethod
    def _outcome(trainer: Trainer, module: GPT2Module) -> TextModel:
        if (kept := _kept(trainer)) is not None:
            return load_checkpoint(kept)
        model = from_config(module.model.config.to_dict(), attention="sdpa")
        model.load_state_dict(module.model.state_dict())
        return TextModel(model, cast(Any, trainer).datamodule.tokenizer)


def _kept(trainer: Trainer) -> Path | None:
    """Return the best checkpoint, else the last one; None where none is kept."""
    if (own := run_checkpoint(trainer)) is not None:
        for path in (own.best_model_path, own.last_model_path):
            if path and Path(path).exists():  # a sharded one is a folder
                return Path(path)
    return None
