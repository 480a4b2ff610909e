"""Steps, tokens and validations of a run, as training counts them."""

from dataclasses import dataclass
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
    limit = 1.0 if trainer.limit_train_batches is None else trainer.limit_train_batches
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
    targets = int(blocks.target_counts.sum())
    per_epoch = batches.steps_taken
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
    in_epoch = round(targets * batches.taken / len(batches))
    validated = _validated(trainer.limit_val_batches, len(held_out))
    by_interval = _by_interval(trainer, steps, per_epoch, batches.taken) if validated else 0
    return Steps(
        training_tokens=targets,
        training_blocks=len(blocks),
        validation_tokens=int(held_out.blocks.target_counts.sum()),
        blocks_per_step=data.batch_size * processes * accumulate,
        tokens_per_step=data.batch_size * processes * accumulate * data.block_size,
        micro_batches=batches.taken,
        steps_per_epoch=per_epoch,
        tokens_per_epoch=in_epoch,
        steps=steps,
        tokens=round(in_epoch * steps / per_epoch),
        schedule=schedule_steps or (ends[0] if ends[0] > 0 else steps),
        epochs=steps / per_epoch,
        validations=max(by_interval, 1) if validated and steps else 0,
        validations_at_own_interval=by_interval,
        validation_micro_batches=validated,
    )


def _validated(limit: int | float | None, batches: int) -> int:
    if limit is None:
        return batches
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)


def _by_interval(trainer: Any, steps: int, per_epoch: int, micro_batches: int) -> int:
    """Count the validations that come by the trainer's interval, as Lightning counts them."""
    accumulate = int(trainer.accumulate_grad_batches)
    interval = 1.0 if trainer.val_check_interval is None else trainer.val_check_interval
    by_epoch = trainer.check_val_every_n_epoch
    if isinstance(interval, str | dict) or not isinstance(interval, int | float):
        return 1  # by the clock, which says nothing of steps
    if isinstance(interval, int):
        every = interval
    else:
        every = max(1, int(micro_batches * interval))
        every = -(-every // accumulate) * accumulate if every < micro_batches else every
    if by_epoch is None:  # counted over the epochs
        taken = steps // per_epoch * micro_batches + steps % per_epoch * accumulate
        return taken // every
    whole, rest = divmod(steps, per_epoch)
    checked = sum(1 for epoch in range(1, whole + 1) if epoch % by_epoch == 0)
    found = checked * (micro_batches // every)
    if rest and (whole + 1) % by_epoch == 0:
        found += min(rest * accumulate, micro_batches) // every
    return found
