"""Tokens -> text: the one place where ids are decoded, all at once or as they are generated."""

import codecs
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

CUT_CHARACTER = "\ufffd"  # Unicode's replacement for bytes that are no character

CONTEXT = 8  # tokens before one that may change its text: a space, a joined word

MOST_TOKENS = 16  # of one character; after so many, bytes that are no character stay as they are

# Chinese and Japanese, written without spaces between words, with their punctuation
_CJK = (
    "\u2e80-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f"
    "\U00020000-\U0003ffff"
)

_SHARED = "“”‘’…—·"  # punctuation that Chinese and Latin text share

# Thai, Lao, Burmese and Khmer have no spaces between words either, and no tokenizer splits them
WITHOUT_SPACES = re.compile(f"[{_CJK}\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")

# Spaces that a WordPiece decoder adds where the text had none.
_ADDED_BLANK = re.compile(
    f"(?<=[{_CJK}]) | (?=[{_CJK}])"
    f"|(?<=[{_SHARED}]) (?=[{_SHARED}])"
    r"|(?<=\d[.,:]) (?=\d)|(?<=\d) (?=[%:])"
)

Decode = Callable[[list[int]], str]

Finish = Literal["stop", "length"]


def decoder(tokenizer: PreTrainedTokenizerBase, *, after: Sequence[int] = ()) -> Decode:
    """Return a function that decodes ids, such that further ids only append to the text.

    The exception are bytes that are no whole character yet: they are U+FFFD at the end.

    A WordPiece tokenizer, such as the BERT vocabulary of Chinese GPT-2s, drops all white space and
    decodes with a space before every word; beside Chinese and Japanese characters, and within
    numbers, that space is removed.

    Args:
        tokenizer: The model's tokenizer.
        after: Ids of the text that is continued. They determine whether the first new id begins
            with a space, or is joined to the last word.
    """
    added_blanks = _kind_of_decoder(tokenizer) == "WordPiece"

    def decode(ids: list[int]) -> str:
        # cleaning up would change text that was decoded before
        text = cast(str, tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return _ADDED_BLANK.sub("", text) if added_blanks else text

    context = [] if is_byte_level(tokenizer) else list(after[-CONTEXT:])
    if not context:
        return decode
    before = len(decode(context))
    return lambda ids: decode([*context, *ids])[before:]


def decode_all(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """Decode many rows of ids as `decoder` does, on all cores."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [decoder(tokenizer)(ids) for ids in rows]
    texts: list[str] = backend.decode_batch(rows, skip_special_tokens=False)
    if _kind_of_decoder(tokenizer) == "WordPiece":
        return [_ADDED_BLANK.sub("", text) for text in texts]
    return texts


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether tokens are bytes, as GPT-2's: a token's text does not depend on others."""
    return _kind_of_decoder(tokenizer) == "ByteLevel"


def _kind_of_decoder(tokenizer: PreTrainedTokenizerBase) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # backend.to_str() would serialize the whole vocabulary: 0.2 s with GPT-2's
    found = None if backend is None else backend.decoder
    return None if found is None else type(found).__name__


class TokenBytes:
    """The bytes that each token adds to a text, so that text can be decoded token by token.

    A byte-level tokenizer has them in its vocabulary. With others, such as BERT's, a token's text
    depends on the tokens before it: the text is decoded with and without the token.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._decode = decoder(tokenizer)
        self._byte_level = is_byte_level(tokenizer)
        # for a byte-level tokenizer, added tokens (<|endoftext|>) and those looked up so far; for
        # others, SentencePiece's tokens for single bytes
        self._known = (
            {id_: it.content.encode() for id_, it in tokenizer.added_tokens_decoder.items()}
            if self._byte_level
            else _single_bytes(tokenizer)
        )

    def of(self, token: int, before: Sequence[int]) -> bytes:
        """Return the bytes that a token adds to the text of the tokens before it."""
        if self._byte_level:
            return self._from_vocabulary(token)
        if token in self._known:
            return self._known[token]
        context = list(before[-CONTEXT:])
        shorter, longer = self._decode(context), self._decode([*context, token])
        return longer.removeprefix(shorter).encode()

    def label(self, token: int) -> str:
        r"""Return a token's text, or ``bytes:\x..`` if its bytes are no characters."""
        if not self._byte_level and token not in self._known:
            return self._decode([token])
        found = self.of(token, ())
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def longest(self) -> int | None:
        """Return the bytes of the longest token; None if a token's text depends on others."""
        if not self._byte_level:
            return None
        return max(len(self._from_vocabulary(id_)) for id_ in self._tokenizer.get_vocab().values())

    def _from_vocabulary(self, token: int) -> bytes:
        if token not in self._known:
            # a model may have more ids than its tokenizer
            text = cast(str | None, self._tokenizer.convert_ids_to_tokens(token)) or ""
            try:
                self._known[token] = bytes(_byte_of()[character] for character in text)
            except KeyError:  # its letters are no bytes: it is its own text
                self._known[token] = text.encode()
        return self._known[token]


@cache
def _byte_of() -> dict[str, int]:
    return {character: byte for byte, character in bytes_to_unicode().items()}


def _single_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or "ByteFallback" not in repr(backend.decoder):
        return {}
    ids = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {token: bytes([byte]) for byte, token in ids.items() if token is not None}


class Logprob(NamedTuple):
    """Log-probabilities at a token, in nats.

    Attributes:
        chosen: Of the token itself; None for a text's first token.
        top: Ids and log-probabilities of the likeliest tokens, the likeliest first.
    """

    chosen: float | None
    top: list[tuple[int, float]]


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
        label: Its text, or its bytes if these are no characters.
        offset: Its first character in the answer's text.
        logprob: Its log-probability.
    """

    label: str
    offset: int
    logprob: Logprob


class Piece(NamedTuple):
    """The next piece of a text, which will not change any more.

    Attributes:
        text: More of the text.
        tokens: More of its tokens, if log-probabilities are wanted.
        finish: In the last piece, why the text ended.
    """

    text: str
    tokens: list[Token]
    finish: Finish | None


class TextAssembler:
    """Decodes a text token by token.

    An unfinished character and the possible beginning of a stop string are held back: a returned
    piece is final, and all pieces joined are the text, up to the first stop string. The prompt is
    not searched for stop strings.

    Args:
        tokens: The bytes of each token, or the tokenizer.
        stop: Strings before which the text ends.
        end_of_text: Id that ends the text and is no part of it; None for none.
        after: Ids of the text that is continued, if they are no part of the text.
    """

    def __init__(
        self,
        tokens: TokenBytes | PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        end_of_text: int | None = None,
        after: Sequence[int] = (),
    ) -> None:
        self.stopped = False  # at a stop string
        self._tokens = tokens if isinstance(tokens, TokenBytes) else TokenBytes(tokens)
        self._stop = stop
        self._end_of_text = end_of_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids = list(after)
        self._pending = ""  # decoded, but it may be the beginning of a stop string
        self._released = 0  # characters
        self._held: list[tuple[int, Token]] = []  # tokens, and where their text ends

    def add_prompt(
        self, ids: Sequence[int], logprobs: Sequence[Logprob] | None, *, last: bool
    ) -> Piece:
        """Add an echoed prompt, which is not searched for stop strings.

        Args:
            ids: Its ids.
            logprobs: Log-probabilities of each id, if wanted.
            last: Whether no token will follow.

        Returns:
            The prompt's text, without an unfinished character at its end unless ``last``.
        """
        for number, token in enumerate(ids):
            content = self._tokens.of(token, self._ids)
            self._keep(token, content, None if logprobs is None else logprobs[number])
        if last:
            self._pending += self._decoder.decode(b"", final=True)
        text, self._pending = self._pending, ""
        return self._release(text, "length" if last else None)

    def add(self, token: int, logprob: Logprob | None = None, *, last: bool = False) -> Piece:
        """Add the next token, and return the text that has become final.

        Args:
            token: Its id.
            logprob: Its log-probability, if wanted.
            last: Whether no other will follow, if this one does not end the text by itself.
        """
        ended = token == self._end_of_text
        self._keep(token, b"" if ended else self._tokens.of(token, self._ids), logprob)
        if ended or last:
            self._pending += self._decoder.decode(b"", final=True)
        found = [at for stop in self._stop if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._pending = self._pending[: min(found)], ""
            end = self._released + len(text)
            self._held = [(end, token) for _, token in self._held if token.offset < end]
            return self._release(text, "stop")
        finish: Finish | None = "stop" if ended else "length" if last else None
        cut = len(self._pending) - (0 if finish else self._beginning_of_stop())
        # where tokens are returned, each comes with all of its text
        parted = [it.offset for end, it in self._held if it.offset < self._released + cut < end]
        cut = min([cut, *(begin - self._released for begin in parted)])
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return self._release(text, finish)

    def add_all(self, ids: Sequence[int]) -> str:
        """Add all tokens of a text; return it up to the first stop string."""
        pieces = []
        for number, token in enumerate(ids, 1):
            pieces.append(self.add(token, last=number == len(ids)))
            if pieces[-1].finish:
                break
        return "".join(piece.text for piece in pieces)

    def close(self) -> str:
        """Return the text that was held back, when no token follows."""
        return self._pending + self._decoder.decode(b"", final=True)

    def _keep(self, token: int, content: bytes, logprob: Logprob | None) -> None:
        if content and not 0x80 <= content[0] < 0xC0:  # it does not continue a character
            self._pending += self._decoder.decode(b"", final=True)
        begin = self._released + len(self._pending)
        self._pending += self._decoder.decode(content)
        self._ids.append(token)
        if logprob is not None:
            end = self._released + len(self._pending)
            self._held.append((end, Token(self._tokens.label(token), begin, logprob)))

    def _beginning_of_stop(self) -> int:
        """Return the number of last characters that may begin a stop string."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._pending))
        return next(
            (
                length
                for length in range(longest, 0, -1)
                if any(stop.startswith(self._pending[-length:]) for stop in self._stop)
            ),
            0,
        )

    def _release(self, text: str, finish: Finish | None) -> Piece:
        self._released += len(text)
        ready = [token for end, token in self._held if finish or end <= self._released]
        self._held = self._held[len(ready) :]
        return Piece(text, ready, finish)


def whole_characters(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, after: Sequence[int] = ()
) -> list[tuple[str, int]]:
    """Cut a text into pieces of whole characters, as small as its tokens are.

    Args:
        tokenizer: The tokenizer.
        ids: The ids.
        after: Ids before the first, which may determine whether a space precedes it.

    Returns:
        Text and number of tokens of each piece; joined they are the text.
    """
    known = [*after, *ids]  # a piece's text depends on the last few before it
    pieces: list[tuple[str, int]] = []
    begins = len(after)
    decode = decoder(tokenizer, after=after)
    for ends in range(begins + 1, len(known) + 1):
        text, held = decode(known[begins:ends]), ends - begins
        broken = not text or text.endswith(CUT_CHARACTER)
        if broken and held < MOST_TOKENS and ends < len(known):
            continue
        pieces.append((text, held))
        begins = ends
        decode = decoder(tokenizer, after=known[max(0, ends - CONTEXT) : ends])
    return pieces


def passage(
    tokenizer: PreTrainedTokenizerBase, ids: npt.NDArray[Any], begins: int, *, most: int
) -> slice | None:
    """Find a passage that begins and ends at a word, within one article.

    In scripts without spaces, or if there is only one word, it begins and ends at a character.

    Args:
        tokenizer: The tokenizer.
        ids: A whole text, shape ``(tokens,)``, with an end-of-text between articles.
        begins: Index at or after which the passage begins.
        most: Tokens at most.

    Returns:
        Its slice of ``ids``; None if nothing but end-of-texts is left.
    """
    end_of_text = int(tokenizer.eos_token_id)
    while begins < len(ids) and ids[begins] == end_of_text:
        begins += 1
    if begins >= len(ids):
        return None
    # the token before the first, and the one after the last, show whether a word is cut
    lead = 0 if begins == 0 or ids[begins - 1] == end_of_text else 1
    window = ids[begins - lead : begins + most + 1].tolist()
    article = window[: window.index(end_of_text)] if end_of_text in window else window
    ends = len(article) < lead + most + 1
    pieces = whole_characters(tokenizer, article)
    characters = np.cumsum([0, *(tokens for _, tokens in pieces)]).tolist()
    words = [
        place
        for place, (before, _), (behind, _) in zip(
            characters[1:-1], pieces[:-1], pieces[1:], strict=True
        )
        if _parts(before, behind)
    ]
    words = [0] * (lead == 0) + words + [len(article)] * ends
    if len(words) < 2 and end_of_text in window:
        return passage(tokenizer, ids, begins - lead + len(article), most=most)
    if not ends and pieces[-1][0].endswith(CUT_CHARACTER):
        characters.pop()
    places = words if len(words) > 1 else [place for place in characters if place >= lead]
    first = places[0]
    last = max(place for place in places if place <= first + most)
    if last == first:  # one character is longer
        last = min(len(article), first + most)
    return slice(begins - lead + first, begins - lead + last)


def _parts(before: str, behind: str) -> bool:
    """Return whether a word or character ends between two pieces of text."""
    if not before or not behind or CUT_CHARACTER in before[-1] + behind[0]:
        return False
    if WITHOUT_SPACES.match(before[-1]) or WITHOUT_SPACES.match(behind[0]):
        return True
    return not (before[-1].isalnum() and behind[0].isalnum())
