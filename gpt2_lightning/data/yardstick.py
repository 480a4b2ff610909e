"""A yardstick for bits per byte: what a general compressor reaches on the same text."""

import lzma


def primed_xz_bits_per_byte(train: bytes, held_out: bytes) -> float:
    """Return what xz needs for a held-out text once it has seen the training text.

    ``8 (xz(train + held_out) - xz(train)) / len(held_out)``, where ``xz`` is the compressed size
    in bytes at preset 9, extreme.

    Args:
        train: The training text in UTF-8.
        held_out: The text to be predicted, in UTF-8.

    Returns:
        Bits per byte.
    """
    preset = 9 | lzma.PRESET_EXTREME
    both = len(lzma.compress(train + held_out, preset=preset))
    return 8 * (both - len(lzma.compress(train, preset=preset))) / len(held_out)
