"""The learning rates that are usual for a model and a batch."""

import math
from dataclasses import dataclass

from gpt2_lightning.planning.shape import Shape

FAR = 5.0  # times outside the usual range
# The transformers Trainer's default, at its language-modeling example's default batch of eight
# blocks of 1,024 tokens: https://github.com/huggingface/transformers/tree/main/examples/pytorch/
# language-modeling
TUNING_RATE, TUNING_TOKENS = 5e-5, 8 * 1024
# The batch of the rule below.
SCRATCH_TOKENS = 2**19


@dataclass(frozen=True)
class UsualRate:
    """A range of peak learning rates.

    Attributes:
        low: Lower end.
        high: Upper end.
        rule: Where it comes from, in words.
    """

    low: float
    high: float
    rule: str

    def __str__(self) -> str:
        low, high = f"{self.low:.1e}", f"{self.high:.1e}"
        return low if low == high else f"{low} to {high}"

    def is_far(self, rate: float) -> bool:
        """Tell whether a rate lies far outside."""
        return not self.low / FAR <= rate <= self.high * FAR


def usual_rate(shape: Shape, tokens_per_step: int, *, from_scratch: bool) -> UsualRate:
    """Return the range between a known rate as it is, and scaled to the batch.

    Adam's rate goes with the square root of the batch: Malladi et al., "On the SDEs and Scaling
    Rules for Adaptive Gradient Algorithms", https://arxiv.org/abs/2205.10287. Small batches are
    often trained at the unscaled rate, so that both ends count as usual. The known rate is that
    of the transformers Trainer for fine-tuning; from scratch 0.003239 - 0.0001395 ln N for N
    parameters outside the embeddings and batches of 2^19 tokens: Kaplan et al., "Scaling Laws for
    Neural Language Models", https://arxiv.org/abs/2001.08361, appendix D.6.

    Args:
        shape: The model.
        tokens_per_step: Positions in an optimizer step.
        from_scratch: Whether it starts from random weights.
    """
    if from_scratch:
        count = max(shape.layers * shape.layer_parameters, 1)
        known, tokens = max(0.003239 - 0.0001395 * math.log(count), 1e-5), SCRATCH_TOKENS
        name = "Kaplan et al. (2020) for a model of this size"
    else:
        known, tokens = TUNING_RATE, TUNING_TOKENS
        name = "the transformers Trainer's default for fine-tuning"
    scaled = known * math.sqrt(tokens_per_step / tokens)
    return UsualRate(
        min(known, scaled),
        max(known, scaled),
        f"{name}, {known:.1e} at {tokens:,} tokens a step, as it is or scaled by the square root "
        f"of the batch (Malladi et al., 2022) to {scaled:.1e}",
    )
