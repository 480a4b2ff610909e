"""Bytes of a number: of weights, of matrix products, of what passes between layers."""

from dataclasses import dataclass
from typing import Any

from gpt2_lightning.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """How wide the numbers of a run are.

    Attributes:
        name: Lightning's name for it.
        weights: Bytes of a weight, of its gradient, and of each of AdamW's two running means.
        products: Bytes of what goes into matrix products and comes out of them.
        mixed: Whether products are narrower than weights, which are cast for them.
        scaled: Whether the loss is scaled, as fp16 needs it; AdamW is then not fused.
    """

    name: str
    weights: int
    products: int
    mixed: bool = False
    scaled: bool = False


_FULL = Precision("32-true", 4, 4)
_BY_NAME = {
    **dict.fromkeys(("None", "32", "32-true"), _FULL),
    **dict.fromkeys(("64", "64-true"), Precision("64-true", 8, 8)),
    **dict.fromkeys(("bf16", "bf16-mixed"), Precision("bf16-mixed", 4, 2, mixed=True)),
    **dict.fromkeys(("16", "16-mixed"), Precision("16-mixed", 4, 2, mixed=True, scaled=True)),
    "bf16-true": Precision("bf16-true", 2, 2),
    "16-true": Precision("16-true", 2, 2),
}


def precision_of(asked: Any) -> Precision:
    """Return what `--trainer.precision` means.

    Args:
        asked: Its value; null is fp32.

    Raises:
        UsageError: If nothing is known of its memory.
    """
    found = _BY_NAME.get(str(asked))
    if found is None:
        raise UsageError(
            f"--trainer.precision {asked}: there is no account for it. Choose 32-true, "
            "bf16-mixed, 16-mixed, bf16-true, 16-true or 64-true."
        )
    return found
