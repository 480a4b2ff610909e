"""What the memory of a run depends on."""

from dataclasses import dataclass, replace

from gpt2_lightning.model.causal_lm import AttentionName
from gpt2_lightning.planning.place import Place
from gpt2_lightning.planning.precision import Precision
from gpt2_lightning.planning.shape import Shape


@dataclass(frozen=True)
class Setting:
    """A model, a micro-batch, and where and how it is trained.

    Attributes:
        shape: The model's.
        precision: Widths of its numbers.
        place: Its devices.
        batch_size: Blocks in a micro-batch of a process.
        block_size: Tokens in a block.
        padded: Whether blocks hold padding, which attention masks.
        attention: Its implementation.
        checkpointing: Whether activations are computed again in the backward pass.
        accumulate: Micro-batches in an optimizer step.
        saves: Whether checkpoints are written.
        exports: Whether the run ends with hf/ and a report.
        validates: Whether it validates.
    """

    shape: Shape
    precision: Precision
    place: Place
    batch_size: int
    block_size: int
    padded: bool = False
    attention: AttentionName = "sdpa"
    checkpointing: bool = False
    accumulate: int = 1
    saves: bool = True
    exports: bool = True
    validates: bool = True

    @property
    def rows(self) -> int:
        """Positions in a micro-batch."""
        return self.batch_size * self.block_size

    @property
    def on_cpu(self) -> bool:
        """Whether the device's memory is the process' own."""
        return self.place.accelerator != "cuda"

    def with_micro_batch(self, batch_size: int) -> "Setting":
        """Return the same global batch in smaller micro-batches, of which there are more."""
        blocks = self.batch_size * self.accumulate
        return replace(self, batch_size=batch_size, accumulate=blocks // batch_size)
