"""Steps, tokens and validations of a run, as training counts them."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from gpt2_lightning.data.batches import EvalBatches, TrainBatches
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.errors import UsageError


@dataclass(frozen=True)
class Steps:
    """How far a run goes.

    Attributes:
        training_tokens: Targets of the training split.
        training_blocks: Blocks of it.
        validation_tokens: Targets of the validation split, where it is not cut short.
        blocks_per_step: The global batch: blocks that an optimizer step takes, over all processes.
        tokens_per_step: Positions in them.
        micro_batches: Micro-batches of a process in an epoch.
        steps_per_epoch: Optimizer steps in an epoch.
        tokens_per_epoch: Targets in an epoch.
        steps: Optimizer steps of the run.
        tokens: Targets of the run.
        schedule: Steps after which the learning rate's schedule ends.
        epochs: Epochs of the run, of which the last may be a part.
        validations: Of the run, the one at its end among them, without the one before training.
        validations_at_own_interval: Of these, those that come by ``val_check_interval``.
        validation_micro_batches: Micro-batches of a process in each.
        baseline_micro_batches: Micro-batches of a process in the validation before training.
    """

    training_tokens: int
    training_blocks: int
    validation_tokens: int
    blocks_per_step: int
    tokens_per_step: int
    micro_batches: int
    steps_per_epoch: int
    tokens_per_epoch: int
    steps: int
    tokens: int
    schedule: int
    epochs: float
    validations: int
    validations_at_own_interval: int
    validation_micro_batches: int
    baseline_micro_batches: int


def steps_of(
    data: WikiTextDataModule, trainer: Any, schedule_steps: int | None, processes: int
) -> Steps:
    """Count a run's steps.

    Args:
        data: The datamodule, set up for fit.
        trainer: The flags of the trainer.
        schedule_steps: ``--model.schedule_steps``.
        processes: Processes among which a global batch is dealt out.

    Raises:
        UsageError: If the run has no end.
    """
    accumulate = int(trainer.accumulate_grad_batches)
    limit = _share_or_count(trainer.limit_train_batches)
    blocks = data.split_blocks("train")
    batches = TrainBatches(
        blocks,
        batch_size=data.batch_size,
        seed=0,
        world_size=processes,
        accumulate=accumulate,
        limit=limit,
    )
    held_out = EvalBatches(
        data.split_blocks("validation"), batch_size=data.batch_size, world_size=processes
    )
    targets = blocks.targets
    per_epoch = batches.num_steps
    if per_epoch == 0:
        raise UsageError(
            f"--trainer.limit_train_batches {limit}: nothing is left of an epoch of "
            f"{len(batches)} micro-batches. Leave it out, or give 1 or more."
        )
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(int(trainer.max_epochs) * per_epoch)
    if trainer.max_steps >= 0:
        ends.append(int(trainer.max_steps))
    if not ends:
        raise UsageError(
            "--trainer.max_epochs: the run has no end. Give --trainer.max_epochs or "
            "--trainer.max_steps."
        )
    steps = min(ends)
    in_epoch = round(targets * batches.num_batches / len(batches))
    validated = _validated(_share_or_count(trainer.limit_val_batches), len(held_out))
    due = _due_by_interval(trainer, steps, per_epoch, batches.num_batches) if validated else []
    baseline = trainer.num_sanity_val_steps
    at_the_end = bool(validated and steps and steps not in due[-1:])
    return Steps(
        training_tokens=targets,
        training_blocks=len(blocks),
        validation_tokens=held_out.blocks.targets,
        blocks_per_step=data.batch_size * processes * accumulate,
        tokens_per_step=data.batch_size * processes * accumulate * data.block_size,
        micro_batches=batches.num_batches,
        steps_per_epoch=per_epoch,
        tokens_per_epoch=in_epoch,
        steps=steps,
        tokens=round(in_epoch * steps / per_epoch),
        schedule=schedule_steps or (ends[0] if ends[0] > 0 else steps),
        epochs=steps / per_epoch,
        validations=len(due) + at_the_end,
        validations_at_own_interval=len(due),
        validation_micro_batches=validated,
        baseline_micro_batches=validated
        if baseline is None or baseline < 0
        else min(int(baseline), validated),
    )


def _share_or_count(asked: int | float | None) -> int | float:
    """Read a limit or an interval as Lightning does: above 1 it counts micro-batches."""
    if asked is None:
        return 1.0
    return int(asked) if asked > 1 else asked


def _validated(limit: int | float, batches: int) -> int:
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)


def _due_by_interval(trainer: Any, steps: int, per_epoch: int, micro_batches: int) -> list[int]:
    """Return the steps after which Lightning validates, the run's end left aside."""
    accumulate = int(trainer.accumulate_grad_batches)
    by_epoch = trainer.check_val_every_n_epoch
    if isinstance(trainer.val_check_interval, str | dict | timedelta):
        return [steps]  # by the clock, which says nothing of steps
    every = _share_or_count(trainer.val_check_interval)
    if not isinstance(every, int):
        every = max(1, int(micro_batches * every))
        if every < micro_batches:
            every = -(-every // accumulate) * accumulate

    def is_due(step: int) -> bool:
        epoch, within = divmod(step - 1, per_epoch)
        batches = min((within + 1) * accumulate, micro_batches)
        if by_epoch is None:
            return (epoch * micro_batches + batches) % every == 0
        return (epoch + 1) % by_epoch == 0 and batches % every == 0

    return [step for step in range(1, steps + 1) if is_due(step)]
