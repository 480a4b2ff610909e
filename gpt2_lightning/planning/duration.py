"""How long a run would take, with a range."""

from dataclasses import dataclass

from gpt2_lightning.planning.measured_step import MeasuredStep
from gpt2_lightning.planning.setting import Setting
from gpt2_lightning.planning.steps import Steps

# Shares of its peak rate that a device has reached in training: GPT-3's and PaLM's, table 3 of
# Chowdhery et al., https://arxiv.org/abs/2204.02311. A small batch may stay below.
UTILIZATION = (0.213, 0.462)


@dataclass(frozen=True)
class Duration:
    """Seconds; each a likely figure, the least and the most.

    Attributes:
        step: An optimizer step.
        epoch: Training of an epoch.
        training: Training in all.
        validation: All validations, with the one before training.
        source: What the figures follow from.
    """

    step: tuple[float, float, float]
    epoch: tuple[float, float, float]
    training: tuple[float, float, float]
    validation: tuple[float, float, float]
    source: str

    @property
    def whole(self) -> tuple[float, float, float]:
        """Training and validations; samples and the writing of files are not counted."""
        training, validation = self.training, self.validation
        return (
            training[0] + validation[0],
            training[1] + validation[1],
            training[2] + validation[2],
        )


def from_measured(measured: MeasuredStep, setting: Setting, steps: Steps) -> Duration:
    """Return what a run takes at the speed of a few steps on this machine.

    Args:
        measured: Their times.
        setting: The run.
        steps: How far it goes.
    """
    parts = setting.accumulate
    pairs = zip(measured.micro_batch, measured.update, strict=True)
    step = [parts * micro + update for micro, update in pairs]
    micro_batches = _validation_micro_batches(steps)
    validation = [
        seconds * micro_batches if micro_batches else 0.0 for seconds in measured.validation
    ]
    return _duration(step, validation, steps, "steps measured on this machine")


def from_rate(rate: float, source: str, setting: Setting, steps: Steps) -> Duration:
    """Return what a run takes at a device's peak rate and the usual share of it.

    Forward and backward pass take ``flops_per_token`` for each position; gradient checkpointing a
    third of that more, for a second forward pass; validation a third.

    Args:
        rate: Peak rate of matrix products in the run's precision, in operations/s.
        source: Where it comes from.
        setting: The run.
        steps: How far it goes.
    """
    flops = setting.shape.flops_per_token * setting.rows
    again = 4 / 3 if setting.checkpointing else 1.0
    least, most = UTILIZATION
    shares = ((least * most) ** 0.5, most, least)
    step = [setting.accumulate * flops * again / (rate * share) for share in shares]
    micro_batches = _validation_micro_batches(steps)
    validation = [micro_batches * flops / 3 / (rate * share) for share in shares]
    return _duration(step, validation, steps, source)


def _validation_micro_batches(steps: Steps) -> int:
    return steps.baseline_micro_batches + steps.validations * steps.validation_micro_batches


def _duration(step: list[float], validation: list[float], steps: Steps, source: str) -> Duration:
    def times(seconds: list[float], count: int) -> tuple[float, float, float]:
        return seconds[0] * count, seconds[1] * count, seconds[2] * count

    return Duration(
        step=times(step, 1),
        epoch=times(step, steps.steps_per_epoch),
        training=times(step, steps.steps),
        validation=times(validation, 1),
        source=source,
    )
