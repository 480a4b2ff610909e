"""The bytes of every token, so that text can be put together as the tokens come."""

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gpt2_lightning.data.prompts import decoder
from gpt2_lightning.data.tokenizer import keeps_every_byte

CONTEXT = 8  # tokens before one that may decide how it is written: a space, a joined word


class TokenBytes:
    """What each token adds to a text.

    A byte-level tokenizer has a table of it. Others, such as BERT's, write a token according to
    what stands before it: there the text is decoded with and without the token.

    Args:
        tokenizer: The model's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode = decoder(tokenizer)
        self._table = _table(tokenizer) if keeps_every_byte(tokenizer) else None
        # bytes of the longest token, where every byte of a text is kept
        self.longest = max(map(len, self._table.values())) if self._table else None

    def of(self, token: int, before: list[int]) -> bytes:
        """Return the bytes that a token adds after the tokens before it."""
        if self._table is not None:
            return self._table.get(token, b"")
        context = before[-CONTEXT:]
        shorter, longer = self._decode(context), self._decode([*context, token])
        return longer.removeprefix(shorter).encode()

    def label(self, token: int) -> str:
        """Return a name for a token: its text, or its bytes where these make no characters."""
        if self._table is None:
            return self._decode([token])
        found = self._table.get(token, b"")
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def _table(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    table = {
        token: bytes(byte_of[character] for character in text)
        for text, token in tokenizer.get_vocab().items()
        if all(character in byte_of for character in text)
    }
    # <|endoftext|> and its like stand as they are
    added = {token: it.content.encode() for token, it in tokenizer.added_tokens_decoder.items()}
    return table | added
