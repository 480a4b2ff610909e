"""A yardstick for bits per byte: what a general compressor reaches on the same text."""

import lzma
from typing import cast

from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.token_store import TokenStore

LONGEST_FOR_XZ = 4_000_000  # bytes; xz takes some seconds for them


def xz_bits_per_byte(
    train: TokenStore, held_out: TokenStore, tokenizer: PreTrainedTokenizerBase
) -> float | None:
    """Return what xz needs for a held-out split once it has seen the training split.

    Args:
        train: The training split, cleaned without loss.
        held_out: The split to be predicted, cleaned without loss.
        tokenizer: A byte-level tokenizer, whose ids give back the text.

    Returns:
        Bits per byte of the original text; None where the text is so long that compressing it
        would keep the user waiting.
    """
    if train.manifest.bytes > LONGEST_FOR_XZ:
        return None
    texts = [
        cast(str, tokenizer.decode(store.ids.tolist(), skip_special_tokens=True)).encode()
        for store in (train, held_out)
    ]
    cleaned_share = len(texts[1]) / held_out.manifest.bytes  # what is compressed is the cleaned
    return primed_xz_bits_per_byte(*texts) * cleaned_share


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
