"""Protocol: how a text is scored."""

from dataclasses import dataclass
from typing import Literal

from gpt2_lightning.data.rows import JoinerName
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.published import ProtocolName

EvaluatedSplit = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class Protocol:
    """How a text is cut into windows.

    Attributes:
        name: See docs/metrics.md.
        context: Tokens of a window; null is the model's positions.
        stride: Tokens by which a sliding window moves on; null is half the context.
        joiner: What stands between rows, where they are joined.
    """

    name: ProtocolName
    context: int | None = None
    stride: int | None = None
    joiner: JoinerName | None = None

    def check(self) -> None:
        """See that the options suit the protocol.

        Raises:
            UsageError: If one does not.
        """
        for flag, value in (("context", self.context), ("stride", self.stride)):
            if value is not None and value < 1:
                raise UsageError(f"--{flag} {value}: it has to be 1 or more.")
        if self.context == 1 and self.name in ("disjoint", "sliding"):
            raise UsageError("--context 1: a window of one token predicts none. Try 1024.")
        if self.stride is not None and self.name != "sliding":
            raise UsageError(
                f"--stride {self.stride}: --protocol {self.name} moves no windows. Leave it out, "
                "or choose --protocol sliding."
            )
        if self.joiner is not None and self.name in ("articles", "training"):
            raise UsageError(
                f"--joiner {self.joiner}: --protocol {self.name} joins no rows. Leave it out, or "
                "choose --protocol disjoint or sliding."
            )
        if self.context is not None and self.name == "training":
            raise UsageError(
                f"--context {self.context}: --protocol training takes the run's own blocks; "
                "--data.block_size sets them."
            )

    def suited_to(self, positions: int) -> "Protocol":
        """Fill in what was left open, for a model of so many positions.

        Raises:
            UsageError: If the model does not reach so far.
        """
        context = positions if self.context is None else self.context
        if context > positions:
            raise UsageError(
                f"--context {context}: the model has {positions} positions. "
                f"--context {positions} would work."
            )
        stride = context if self.name == "disjoint" else None
        if self.name == "sliding":
            stride = self.stride
            stride = max(context // 2, 1) if stride is None else stride
            if stride > context:
                raise UsageError(
                    f"--stride {stride}: above the context of {context} tokens, it would skip "
                    f"text. --stride {context // 2} would work."
                )
        return Protocol(self.name, context, stride, self.joiner)
