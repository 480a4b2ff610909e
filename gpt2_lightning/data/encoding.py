"""Text -> ids: put together from those of its distinct words where the ids are the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow
from transformers import PreTrainedTokenizerBase

from gpt2_lightning.data.token_text import decode_all, is_byte_level
from gpt2_lightning.data.tokenizer import cuts_at_spaces, lost_text
from gpt2_lightning.errors import UsageError, reason

MOST_EXAMINED = 1000  # pieces that lose text, to list the kinds of loss

# A text without a space to cut at is tokenized in overlapping windows, joined at a token that both
# have, in the middle of the overlap: beyond BERT's limit of 100 characters per word.
WINDOW = 1 << 16  # characters

OVERLAP = 1 << 10

WINDOWS_AT_ONCE = 16

# A word is what lies between two places to cut at: before a blank that follows a character that
# is none, or precedes one. Of a run of blanks, GPT-2's pattern joins the last to the next word if
# it is a space, and matches it alone otherwise; the blanks before it are one match.
BLANK = np.isin(np.arange(256), list(b" \n\r\t"))

VISIBLE = np.isin(np.arange(256), np.arange(0x21, 0x7F))  # bytes that are a character, no blank

# of the first bytes of characters, those of which some are blanks: U+00A0, U+1680, U+2003, U+3000
BEGINS_VISIBLE = VISIBLE | np.isin(np.arange(256), [*range(0xC3, 0xE1), *range(0xE4, 0xF5)])

MOST_KNOWN = 1 << 19  # characters of the words whose ids are kept

ID_BYTES = 4

Ids = npt.NDArray[np.uint32]


class Encoder:
    """Tokenizes pieces of text, many in one call, which the tokenizer computes on all cores.

    In a text of many words most come again: where the tokenizer lets a text be cut at blanks, the
    ids of each word are looked up once, and put together by pyarrow and NumPy, without the
    interpreter's lock.

    Attributes:
        lost: Kinds of content that the ids so far have lost.
        examined: Pieces of which something is lost.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, lost: list[str] | None = None, examined: int = 0
    ) -> None:
        self.tokenizer = tokenizer
        self.lost = dict.fromkeys(lost or [])
        self.examined = examined
        self._cuts = cuts_at_spaces(tokenizer)
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self._known: dict[str, bytes] = {}
        self._characters = 0  # of the known words
        added = tokenizer.added_tokens_decoder.values()
        self._added = [token.content for token in added]
        # dropout tokenizes a word in another way each time; an added token that takes the blanks
        # beside it, or has one, might be cut
        varies = getattr(getattr(self._backend, "model", None), "dropout", None)
        self._by_words = (
            self._cuts
            and not varies
            and not any(
                token.lstrip
                or token.rstrip
                or token.single_word
                or any(map(str.isspace, token.content))
                for token in added
            )
        )
        # of bytes, the text of all ids is the texts of the words: nothing is lost if no word is
        self._words_tell = is_byte_level(tokenizer)

    def __call__(self, texts: list[str]) -> list[Ids]:
        """Return the ids of each piece.

        Raises:
            UsageError: If the tokenizer fails.
        """
        found: list[Ids] = []
        for long, group in groupby(texts, lambda text: len(text) > 2 * WINDOW and self._cuts):
            for text in group if long else ():
                ids = self._in_windows(text)
                found += [np.concatenate(ids)] if ids else self._whole([text])
            if not long:
                some = list(group)
                words = (
                    self._by_words
                    and any(some)
                    and not any(token in text for token in self._added for text in some)
                )
                found += self._in_words(some) if words else self._whole(some)
        return found

    def _whole(self, texts: list[str]) -> list[Ids]:
        encoded = [np.asarray(ids, np.uint32) for ids in self._ids(texts)]
        self._look_for_losses(texts, encoded)
        return encoded

    def _in_words(self, texts: list[str]) -> list[Ids]:
        """Return the ids of texts, put together from those of their distinct words."""
        pieces = [text.encode() for text in texts]
        data, ends = b"".join(pieces), np.cumsum([len(piece) for piece in pieces])
        starts = _words(np.frombuffer(data, np.uint8), ends)
        offsets = np.append(starts, len(data)).astype(np.int32)
        words = pyarrow.StringArray.from_buffers(
            len(starts), pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)
        ).dictionary_encode()
        table = self._look_up(words.dictionary.to_pylist())
        which = words.indices.to_numpy()
        sizes = np.fromiter((len(ids) // ID_BYTES for ids in table), np.int64, len(table))
        counts = sizes[which]
        before = np.append(0, np.cumsum(counts))  # ids before each word, and in all
        # from there to the word's ids in the table
        shift = (np.cumsum(sizes) - sizes)[which] - before[:-1]
        places = np.arange(before[-1]) + np.repeat(shift, counts)
        encoded = np.split(
            np.frombuffer(b"".join(table), np.uint32)[places],
            before[np.searchsorted(starts, ends[:-1])],
        )
        if not self._words_tell:
            self._look_for_losses(texts, encoded)
        return encoded

    def _look_up(self, words: list[str]) -> list[bytes]:
        """Return the ids of distinct words, as bytes."""
        new = [word for word in words if word not in self._known]
        encoded = self._ids(new)
        if self._words_tell:
            self._words_tell = decode_all(self.tokenizer, encoded) == new
        self._known |= zip(
            new, (np.asarray(ids, np.uint32).tobytes() for ids in encoded), strict=True
        )
        table = [self._known[word] for word in words]
        self._characters += sum(map(len, new))
        if self._characters > MOST_KNOWN:
            self._known, self._characters = {}, 0
        return table

    def _ids(self, texts: list[str]) -> list[list[int]]:
        with _naming_panic(max(map(len, texts), default=0)):
            if self._backend is not None:  # without offsets, it is a fifth quicker
                some = self._backend.encode_batch_fast(texts, add_special_tokens=False)
                return [one.ids for one in some]
            encoded: list[list[int]] = self.tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,  # no warning about the model's positions
            )["input_ids"]
        return encoded

    def _in_windows(self, text: str) -> list[Ids]:
        """Return a long text's ids, in parts; empty if the windows cannot be joined.

        Joined at a token that both windows have, the ids are those of the whole text: in a
        byte-level BPE, because each two adjacent ids are the ids of their text; in WordPiece,
        because each token depends only on the text after its beginning.
        """
        parts: list[Ids] = []
        last: npt.NDArray[np.int64] | None = None  # id, first character and end of each token
        begin = 0  # of what is left of the last window, in characters
        starts = range(0, len(text) - OVERLAP, WINDOW - OVERLAP)
        for at in range(0, len(starts), WINDOWS_AT_ONCE):
            some = starts[at : at + WINDOWS_AT_ONCE]
            encoded = self.tokenizer(
                [text[start : start + WINDOW] for start in some],
                add_special_tokens=False,
                return_attention_mask=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            for start, ids, spans in zip(
                some, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                window = np.column_stack([ids, np.asarray(spans).reshape(-1, 2) + start])
                if last is not None:
                    seam = _seam(last, window, start + OVERLAP // 2)
                    if seam is None:
                        return []
                    parts.append(last[: seam[0], 0].astype(np.uint32))
                    self._look_for_losses([text[begin : seam[2]]], parts[-1:])
                    window, begin = window[seam[1] :], seam[2]
                last = window
        assert last is not None
        parts.append(last[:, 0].astype(np.uint32))
        self._look_for_losses([text[begin:]], parts[-1:])
        return parts

    def _look_for_losses(self, texts: list[str], encoded: list[Ids]) -> None:
        if self.examined >= MOST_EXAMINED:
            return
        unknown = self.tokenizer.unk_token_id
        if unknown == self.tokenizer.eos_token_id:  # GPT-2's: with bytes, nothing is unknown
            unknown = None
        rows = [ids.tolist() for ids in encoded]
        decoded = decode_all(self.tokenizer, rows)
        for text, ids, back in zip(texts, rows, decoded, strict=True):
            if found := lost_text(text, back, unknown=unknown in ids):
                self.lost |= dict.fromkeys(found)
                self.examined += 1


def _words(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where the words of texts begin.

    Args:
        data: UTF-8 bytes of the texts, one after another, shape ``(bytes,)``; at least one byte.
        ends: Where each text ends in them, shape ``(texts,)``.
    """
    cut = np.append(False, VISIBLE[data[:-1]])
    followed = np.append(BEGINS_VISIBLE[data[1:]], False)
    followed[ends - 1] = False  # by nothing: what follows is another text
    cut |= followed
    cut &= BLANK[data]
    begins = np.append(0, ends[:-1])
    cut[begins[begins < len(data)]] = True
    return np.flatnonzero(cut)


@contextmanager
def _naming_panic(characters: int) -> Iterator[None]:
    """Turn a panic of `tokenizers`, whose pattern matching has bounded memory, into a UsageError.

    ``except Exception`` does not catch a PanicException.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # made by pyo3, and in no module
            raise
        raise UsageError(
            f"The tokenizer failed ({reason(error)}) on a piece of {characters:,} characters "
            "without a word boundary. Insert spaces or line ends, or check whether it is text."
        ) from error


def _seam(
    before: npt.NDArray[np.int64], after: npt.NDArray[np.int64], middle: int
) -> tuple[int, int, int] | None:
    """Find the token nearest to the middle of an overlap that both windows have.

    Args:
        before: Id, first character and end of each token, shape ``(tokens, 3)``.
        after: The same of the next window.
        middle: Index of a character.

    Returns:
        The number of tokens up to and including it in either window, and its end; None if there
        is no such token.
    """

    def around(window: npt.NDArray[np.int64]) -> dict[tuple[int, ...], int]:
        # if a token ends within a character, the next one begins in the same character
        whole = np.append(window[1:, 1] >= window[:-1, 2], False)
        near = np.abs(window[:, 2] - middle) < OVERLAP // 4
        return {tuple(window[at].tolist()): int(at) + 1 for at in np.flatnonzero(whole & near)}

    one, other = around(before), around(after)
    shared = min(one.keys() & other.keys(), key=lambda it: (abs(it[2] - middle), it), default=None)
    return None if shared is None else (one[shared], other[shared], shared[2])
