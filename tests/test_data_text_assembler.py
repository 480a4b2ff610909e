"""Text from tokens as they come: whole characters, nothing of a stop string, nothing missing."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gpt2_lightning.data.token_text import (
    Finish,
    Logprob,
    Piece,
    TextAssembler,
    Token,
    TokenBytes,
    decoder,
)

TEXT = "Née in 今天 🙂\r\n\t“x”<|endoftext|>\u0000 end"


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return loaded


def written(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str] = ()
) -> tuple[list[str], Finish | None, list[Token]]:
    """Return the pieces of text of ids as they come, why they ended, and their tokens."""
    text = TextAssembler(TokenBytes(tokenizer), stop, tokenizer.eos_token_id)
    texts: list[str] = []
    tokens: list[Token] = []
    for number, token in enumerate(ids, 1):
        piece = text.add(token, Logprob(-1.0, []), last=number == len(ids))
        texts.append(piece.text)
        tokens += piece.tokens
        if piece.finish:
            return texts, piece.finish, tokens
    return texts, None, tokens


@pytest.mark.parametrize(
    "text",
    [
        "the river was built",
        "从前有一座山，山里有一座庙。",
        "a 😀 b 👩‍👩‍👧 c 🇨🇳",
        "naïve café — “stone”\n\nGänsefüßchen",
        "\ufffd is a character, too \ufffd",
    ],
)
def test_every_piece_is_whole_and_comes_at_once(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = tokenizer(text)["input_ids"]
    assembler, decode, shown = TextAssembler(tokenizer), decoder(tokenizer), ""
    for count, token in enumerate(ids, 1):
        shown += assembler.add(token).text
        assert text.startswith(shown)
        # nothing is held back but bytes of a character that is not whole yet
        assert decode(ids[:count]).rstrip("\ufffd") == shown.rstrip("\ufffd")
    assert shown + assembler.close() == text


def test_pieces_are_whole_characters_and_make_up_the_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    text = TEXT.replace("<|endoftext|>", "")
    ids = tokenizer(text)["input_ids"]
    texts, finish, tokens = written(tokenizer, ids)
    assert "".join(texts) == text
    assert finish == "length"
    assert not any("\ufffd" in piece for piece in texts)
    assert len(ids) > len(text)  # characters of several tokens are among them
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        end = len(text) if after is None else after.offset
        part = text[token.offset : end]
        assert token.label == part or token.label.startswith("bytes:\\x")


def test_bytes_that_make_no_character_read_as_the_tokenizer_reads_them(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    table = TokenBytes(tokenizer)
    id_of = {table.of(token, []): token for token in range(len(tokenizer))}
    for content in (b"\xff", b"a\xe4\xbb", b"\xe4a", b"\xf0\x9f\x99a\x82", b"\xc0\x80 b"):
        ids = [id_of[bytes([byte])] for byte in content]
        texts, _, _ = written(tokenizer, ids)
        assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_any_bytes_read_as_the_tokenizer_reads_them(tokenizer: PreTrainedTokenizerBase) -> None:
    chance = random.Random(0)
    for _ in range(200):
        ids = [chance.randrange(256) for _ in range(30)]
        texts, _, _ = written(tokenizer, ids)
        assert "".join(texts) == TextAssembler(tokenizer).add_all(ids) == decoder(tokenizer)(ids)


def test_tokens_beyond_the_vocabulary_and_others_that_are_no_bytes(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.add_tokens(["今天 🙂"])
    added = len(tokenizer) - 1
    ids = [70, added, added + 1, 71]  # a model may have more ids than its tokenizer
    assert TextAssembler(tokenizer).add_all(ids) == decoder(tokenizer)(ids)
    assert TextAssembler(tokenizer, ["今天"]).add_all(ids) == decoder(tokenizer)([70])


def test_the_end_of_text_ends_it_and_is_no_part_of_it(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [*tokenizer("river a")["input_ids"], tokenizer.eos_token_id, 70, 71]
    texts, finish, tokens = written(tokenizer, ids)
    assert ("".join(texts), finish) == ("river a", "stop")
    assert tokens[-1] == Token("<|endoftext|>", len("river a"), Logprob(-1.0, []))


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (["bridge"], "The river. The "),
        (["The b"], "The river. "),
        (["river. X", "er. The b", "dge"], "The riv"),
        (["T"], ""),
        (["ge of stone"], "The river. The brid"),
        (["stoneX"], "The river. The bridge of stone"),
        (["stone", "bridge of"], "The river. The "),
        (["e of stones"], "The river. The bridge of stone"),  # it began, and did not come
        (["rir", "riv"], "The "),
        ([" ri", "er. "], "The"),
    ],
)
def test_a_stop_string_may_lie_across_tokens(
    tokenizer: PreTrainedTokenizerBase, stop: list[str], kept: str
) -> None:
    ids = tokenizer("The river. The bridge of stone")["input_ids"]
    texts, finish, tokens = written(tokenizer, ids, stop)
    assert "".join(texts) == kept
    assert finish == ("length" if stop[0] in ("stoneX", "e of stones") else "stop")
    assert all(token.offset < max(len(kept), 1) for token in tokens)
    assembler = TextAssembler(tokenizer, stop)
    assert assembler.add_all(ids) == kept
    assert assembler.stopped == (finish == "stop")
    so_far = ""
    for piece in texts[:-1]:  # nothing is shown that would have to be taken back
        so_far += piece
        assert kept.startswith(so_far)


def test_text_comes_with_its_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assembler = TextAssembler(TokenBytes(tokenizer), ["verX"], tokenizer.eos_token_id)
    ids = tokenizer("The river near the river")["input_ids"]
    told, text = 0, ""
    for number, token in enumerate(ids, 1):
        piece = assembler.add(token, Logprob(-1.0, []), last=number == len(ids))
        assert bool(piece.text) == bool(piece.tokens)
        text += piece.text
        told += len(piece.tokens)
        assert text == tokenizer.decode(ids[:told])
    assert text == "The river near the river"


@pytest.mark.parametrize("stop", ["从前", "前有一", "😀", "two three", "e"])
def test_the_token_that_completes_a_stop_string_stops_the_text(
    tokenizer: PreTrainedTokenizerBase, stop: str
) -> None:
    ids = tokenizer("one two three four, 从前有一座山 😀 at the end")["input_ids"]
    decode, assembler = decoder(tokenizer), TextAssembler(tokenizer, [stop])
    for count, token in enumerate(ids, 1):
        assembler.add(token)
        assert assembler.stopped == (stop in decode(ids[:count]))
        if assembler.stopped:
            break
    assert assembler.stopped


def test_a_stop_string_of_half_a_character_of_each_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts, finish, _ = written(tokenizer, tokenizer("a今天b")["input_ids"], ["天"])
    assert ("".join(texts), finish) == ("a今", "stop")


def test_stop_strings_of_the_prompt_stop_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    text = TextAssembler(TokenBytes(tokenizer), ["river"], tokenizer.eos_token_id)
    ids = tokenizer("a river 今")["input_ids"]
    echo = text.add_prompt(ids[:-1], None, last=False)
    assert echo.text == "a river "  # the character that the cut went through is still to come
    assert text.add(ids[-1], None, last=False).text == "今"
    text = TextAssembler(TokenBytes(tokenizer), [], tokenizer.eos_token_id)
    assert text.add_prompt(ids[:-1], None, last=True) == Piece("a river \ufffd", [], "length")


def test_a_tokenizer_of_words_is_decoded_as_a_whole() -> None:
    words = ["[UNK]", "[SEP]", "play", "##ing", "the", "##re", "今", "天"]
    backend = Tokenizer(WordPiece({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    from tokenizers.decoders import WordPiece as Decoder

    backend.decoder = Decoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]"
    )
    ids = [2, 3, 4, 5, 6, 7]
    texts, finish, tokens = written(tokenizer, [*ids, 1])
    assert "".join(texts) == "playing there今天"
    assert finish == "stop"
    assert [token.offset for token in tokens[:4]] == [0, 4, 7, 11]
