"""How a tokenizer's vocabulary fits a split."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.token_store import TokenStore
from gpt2_lightning.data.token_text import pieces_of_characters
from gpt2_lightning.inspection.cleaning_loss import CleaningLoss
from gpt2_lightning.inspection.pieces import closing, each_piece


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a split's cleaned text.

    Attributes:
        tokens: Tokens of the text, ends of texts aside.
        ends_of_text: End-of-text tokens beside them, the leading one included.
        tokens_per_word: Tokens to a word (``str.split``) of the cleaned text; None for text whose
            script has no spaces between words.
        tokens_per_character: Tokens to a character of the cleaned text, white space included.
        used: Different ids that occur.
        size: Ids of the tokenizer.
        pieces_of_characters: Share of the tokens that hold no whole character, but a part of its
            bytes.
        unknown: Share of the tokens that stand for what the vocabulary lacks.
    """

    tokens: int
    ends_of_text: int
    tokens_per_word: float | None
    tokens_per_character: float | None
    used: int
    size: int
    pieces_of_characters: float
    unknown: float


def measure_vocabulary(
    store: TokenStore, tokenizer: PreTrainedTokenizerBase, cleaned: CleaningLoss
) -> Vocabulary:
    """Count a split's tokens, by id.

    Args:
        store: The split's tokens.
        tokenizer: Which made them.
        cleaned: The split's text after cleaning.
    """
    counts = np.zeros(len(tokenizer), np.int64)
    for piece in each_piece(store):
        counts += np.bincount(piece, minlength=len(tokenizer))
    used = np.flatnonzero(counts)
    ends = store.manifest.units + 1 if closing(store) else 0
    tokens = store.manifest.tokens - ends
    of_text = counts.copy()
    of_text[int(tokenizer.eos_token_id)] -= ends
    unknown = tokenizer.unk_token_id
    return Vocabulary(
        tokens=tokens,
        ends_of_text=ends,
        tokens_per_word=tokens / cleaned.text_words if cleaned.has_words else None,
        tokens_per_character=tokens / cleaned.text_characters if cleaned.text_characters else None,
        used=len(used),
        size=len(tokenizer),
        pieces_of_characters=pieces_of_characters(tokenizer, of_text),
        # GPT-2's is its end-of-text: bytes leave nothing unknown
        unknown=float(counts[unknown]) / max(tokens, 1)
        if unknown is not None and unknown != tokenizer.eos_token_id
        else 0.0,
    )
