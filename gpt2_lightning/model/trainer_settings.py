"""What of the trainer decides the losses: kept in checkpoints, compared where a run goes on."""

from typing import Any, cast

from lightning.pytorch import Trainer

from gpt2_lightning.errors import UsageError


def trainer_settings(trainer: Trainer, schedule_steps: int) -> dict[str, Any]:
    """Return these settings by the flag that sets each, as plain values.

    Args:
        trainer: The trainer.
        schedule_steps: Optimizer steps of the learning rate's schedule.
    """
    clipping = trainer.gradient_clip_algorithm
    return {
        "--trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "--trainer.devices (x num_nodes)": trainer.world_size,
        "--trainer.precision": trainer.precision,
        "--trainer.gradient_clip_val": trainer.gradient_clip_val,
        "--trainer.gradient_clip_algorithm": clipping and str(clipping.value),
        "--trainer.limit_train_batches": trainer.limit_train_batches,
        "--trainer.overfit_batches": cast(Any, trainer).overfit_batches,
        "--trainer.max_epochs or max_steps (steps of the schedule)": schedule_steps,
    }


def refuse_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """See that a run that goes on takes the steps that it would have taken.

    Args:
        before: The checkpoint's settings.
        now: Those of the trainer that goes on.

    Raises:
        UsageError: If one differs.
    """
    for flag, value in before.items():
        if now[flag] != value:
            raise UsageError(
                f"{flag}: the checkpoint was trained with {value}, now it is {now[flag]}, and "
                "going on so would be another run. Leave the flag as it was, or begin a new run "
                "with these weights: --model.pretrained RUN, without --ckpt_path."
            )
