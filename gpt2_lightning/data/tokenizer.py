"""The tokenizer: loaded or trained; its eos, pad and length; what its vocabulary loses or lacks."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase

from gpt2_lightning.data.articles import CHARACTERS_PER_CHUNK, word_chunks
from gpt2_lightning.data.token_text import CUT_CHARACTER, decoder
from gpt2_lightning.errors import UsageError, one_line, reason
from gpt2_lightning.pretrained import load_tokenizer_files
from gpt2_lightning.storage import scratch_folder, whole_folder
from gpt2_lightning.untrusted import is_inside

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"  # GPT-2's own, so that every tool for GPT-2 knows it

BYTES = 256  # a byte-level BPE begins with one token for each

# GPT-2's pattern of words, as the ByteLevel pre-tokenizer of `tokenizers` has it.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

LONGEST_LEARNED = 512  # characters of a word; each merge scans the words that have its pair

MOST_LEARNED = 1 << 22  # characters sampled from a text without spaces

# Of GPT-2's tokens of a sentence in German or Polish 3 to 15 % are pieces of a character, in
# Russian or Arabic more than four in ten, in Chinese or Korean nine.
MOST_PIECES = 0.25

SAMPLED = 100_000  # tokens of a text's beginning

FLAG = "--data.tokenizer (unless given, that of --model.pretrained)"


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder for tokens and tokenizers.

    Args:
        cache_dir: The user's choice; null is ``gpt2_lightning`` below XDG_CACHE_HOME, by default
            ``~/.cache``.
    """
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(cache_dir or f"{home}/gpt2_lightning").expanduser()


def load_tokenizer(
    name: str, revision: str | None = None, add_tokens: str | None = None, *, flag: str = FLAG
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with an end-of-text and a padding token.

    If it has no end-of-text, as the BERT vocabulary of Chinese GPT-2s, its separator is used
    instead, with a warning. The padding token defaults to the end-of-text.

    Args:
        name: Hub id, or folder with tokenizer files.
        revision: Branch, tag or commit on the Hub.
        add_tokens: File of tokens that are added to its vocabulary, one a line.
        flag: The flag that named it, for messages.

    Raises:
        UsageError: If no tokenizer has that name, it is empty, it has neither an end-of-text nor a
            separator, or the tokens to add cannot be read.
    """
    try:
        tokenizer = load_tokenizer_files(name, revision, said=f"{flag} {name}")
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{flag} {name}: no tokenizer was found there ({reason(error)}). Give a folder that "
            "holds tokenizer.json, or a Hub id such as openai-community/gpt2."
        ) from error
    if len(tokenizer) <= 1:
        raise UsageError(
            f"{flag} {name}: the tokenizer is empty; its vocabulary file is missing. "
            "Fetch the folder again, tokenizer.json included."
        )
    if tokenizer.eos_token is None:
        if tokenizer.sep_token is None:
            raise UsageError(
                f"{flag} {name}: it has no end-of-text token (eos) and no separator "
                "(sep). Add one to its tokenizer_config.json."
            )
        tokenizer.eos_token = tokenizer.sep_token
        log.warning(
            "The tokenizer %s has no end-of-text token; its separator %s is used instead.",
            name,
            tokenizer.sep_token,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if add_tokens is not None:
        tokenizer.add_tokens(read_tokens(Path(add_tokens).expanduser()))
    return tokenizer


def read_tokens(file: Path) -> list[str]:
    """Read tokens to add, one a line; empty lines count for nothing.

    Raises:
        UsageError: If the file cannot be read, holds none, or one has white space: a text is cut at
            it before it is tokenized.
    """
    begin = f"--data.add_tokens {file}:"
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{begin} it cannot be read ({one_line(error)}). Give a UTF-8 text file, one token a "
            "line."
        ) from error
    tokens = [line.removesuffix("\r") for line in lines]
    for number, token in enumerate(tokens, 1):
        if any(map(str.isspace, token)):
            raise UsageError(
                f"{begin} line {number} ({token!r}) has white space. Give each token a line, "
                "without blanks around or in it."
            )
    if not (found := list(dict.fromkeys(filter(None, tokens)))):
        raise UsageError(f"{begin} it holds no token. Give one a line, or leave the flag out.")
    return found


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE like GPT-2's.

    Memory grows with the number of distinct words. Words of more than 512 characters are cut into
    pieces; of a text without spaces, in which all words differ, 4 million characters are sampled
    at even distances.

    Args:
        texts: The training text, in pieces that end with a word.
        vocab_size: Tokens at most, end-of-text included; a small text may give fewer.

    Returns:
        A tokenizer whose last id is the end-of-text.

    Raises:
        UsageError: If ``vocab_size`` is below the 256 bytes and the end-of-text.

    Reference:
        Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units",
        https://arxiv.org/abs/1508.07909; on bytes: Radford et al., "Language Models are
        Unsupervised Multitask Learners", 2019.
    """
    from tokenizers import ByteLevelBPETokenizer, Regex
    from tokenizers.pre_tokenizers import ByteLevel, FixedLength, Sequence, Split

    if vocab_size <= BYTES:
        raise UsageError(
            f"--data.vocab_size {vocab_size}: must be >= {BYTES + 1}, for 256 bytes and the "
            "end-of-text. Try 2048."
        )
    bpe = ByteLevelBPETokenizer()
    bpe.pre_tokenizer = Sequence(
        [
            Split(Regex(GPT2_WORDS), "isolated"),
            FixedLength(LONGEST_LEARNED),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.train_from_iterator(
        _sample(texts), vocab_size=vocab_size - 1, min_frequency=2, show_progress=False
    )
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = GPT2Tokenizer(
        vocab=model["vocab"],
        merges=merges,  # type: ignore[arg-type] # its annotation lacks the pairs that it accepts
        unk_token=None,  # type: ignore[arg-type] # with bytes, nothing is unknown
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )
    return tokenizer


def _sample(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts in chunks; of a text without spaces, some at even distances."""
    for text in texts:
        for part in word_chunks(text):
            if len(part) <= 2 * CHARACTERS_PER_CHUNK:
                yield part
                continue
            starts = range(0, len(part), CHARACTERS_PER_CHUNK)
            step = -(-len(part) // MOST_LEARNED)
            if step > 1:
                log.info(
                    "The tokenizer is trained on one in %d of %s characters without a space.",
                    step,
                    f"{len(part):,}",
                )
            for start in starts[::step]:
                yield part[start : start + CHARACTERS_PER_CHUNK]


def set_model_max_length(tokenizer: PreTrainedTokenizerBase, positions: int) -> None:
    """Set a tokenizer's ``model_max_length`` before it is saved beside its model."""
    tokenizer.model_max_length = positions


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the text of the tokenizer's files, by name, to be stored in a checkpoint."""
    with scratch_folder() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())}


def save_tokenizer_files(files: Mapping[str, str], folder: Path) -> None:
    """Write a tokenizer's files into a folder, whole or not at all.

    Raises:
        UsageError: If a name is not a plain file name.
    """
    for name in files:
        if "/" in name or not is_inside(folder, name):
            raise UsageError(f"The checkpoint's tokenizer has a file named {name!r}: not used.")
    with whole_folder(folder) as writing:
        for name, text in files.items():
            (writing / name).write_text(text, encoding="utf-8")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what determines the ids: vocabulary, rules and end-of-text."""
    # tokenizer_config.json also has the tokenizer's origin, which changes no id
    files = tokenizer_files(tokenizer)
    files.pop("tokenizer_config.json", None)
    shaping = json.dumps([files, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(shaping.encode()).hexdigest()


def cuts_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a text may be cut before a space without changing its ids.

    True for GPT-2's byte-level tokenizers, whose pattern never joins a space to the characters
    before it, and for BERT's, which split words at white space.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if _has_backend(tokenizer) else {}
    splitter = backend.get("pre_tokenizer") or {}
    normalizer = (backend.get("normalizer") or {}).get("type")
    if splitter.get("type") == "BertPreTokenizer":
        return normalizer in (None, "BertNormalizer")
    return bool(
        normalizer is None
        and splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex")
        and not splitter.get("add_prefix_space")
    )


def keeps_every_byte(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the ids determine the text's bytes, as those of a byte-level tokenizer do."""
    from tokenizers.pre_tokenizers import ByteLevel

    if not _has_backend(tokenizer):
        return False
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    decoding = backend.get("decoder") or {}
    return (
        backend.get("normalizer") is None
        and decoding.get("type") == "ByteLevel"
        and tokenizer.get_vocab().keys() >= set(ByteLevel.alphabet())  # one may have been trained
    )


def lost_text(text: str, back: str, *, unknown: bool) -> list[str]:
    """Name the kinds of content that a text loses by tokenizing and decoding.

    Args:
        text: The text.
        back: Its tokens, decoded.
        unknown: Whether the unknown token is among them.
    """
    if back in (text, f" {text}"):  # some tokenizers add a space before every text
        return []
    visible, left = ("".join(it.split()) for it in (text, back))
    found = {
        "line ends": text.count("\n") > back.count("\n"),
        "capital letters": visible != visible.lower() and left == left.lower(),
        "characters that are not in the vocabulary": unknown,
        "the form of some characters": not unknown and visible.lower() != left.lower(),
    }
    return [name for name, is_lost in found.items() if is_lost] or ["spaces"]


def lost_by_tokens(lost: list[str] | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe what a text loses by tokenizing; empty if nothing.

    Args:
        lost: From a token store's manifest; None in stores of an earlier version.
        tokenizer: The tokenizer of the store.
    """
    if lost is None and not keeps_every_byte(tokenizer):
        return "it is not byte-level, and an earlier version stored its tokens without a check"
    return " and ".join(filter(None, [", ".join((lost or [])[:-1]), *(lost or [])[-1:]]))


def pieces_of_characters(
    tokenizer: PreTrainedTokenizerBase, counts: npt.NDArray[np.int64]
) -> float:
    """Return the share of tokens that are a part of a character's bytes.

    Args:
        tokenizer: The tokenizer.
        counts: Number of occurrences of each id, shape ``(ids,)``.
    """
    decode = decoder(tokenizer)
    broken = [id_ for id_ in np.flatnonzero(counts).tolist() if CUT_CHARACTER in decode([id_])]
    return float(counts[broken].sum() / max(counts.sum(), 1))


def unsuited_vocabulary(pieces: float, per_character: float, *, trained: bool) -> str | None:
    """Return a warning if a vocabulary lacks most of a text's characters.

    Args:
        pieces: Share of the training split's tokens that are a part of a character.
        per_character: Tokens per character.
        trained: Whether the tokenizer is trained on this text.
    """
    if pieces <= MOST_PIECES:
        return None
    remedy = (
        "A larger --data.vocab_size would have more whole characters."
        if trained
        else "Use a model with a tokenizer for it (for Chinese --model.pretrained "
        "uer/gpt2-chinese-cluecorpussmall, say), or train one from scratch "
        "(--model.pretrained null)."
    )
    return (
        f"The vocabulary does not suit this language: {100 * pieces:.1f} % of the tokens are only "
        f"a part of a character, and there are {per_character:.2f} tokens per character (GPT-2 on "
        "English: about 0.23). A model will spend its positions on spelling. " + remedy
    )


def sampled_vocabulary(
    tokenizer: PreTrainedTokenizerBase, ids: npt.NDArray[Any], *, trained: bool
) -> str | None:
    """Return `unsuited_vocabulary` for a text's beginning, within a tenth of a second.

    Args:
        tokenizer: The tokenizer.
        ids: Ids of the training split, shape ``(tokens,)``.
        trained: Whether the tokenizer is trained on this text.
    """
    beginning = ids[:SAMPLED]
    counts = np.bincount(beginning)
    counts[int(tokenizer.eos_token_id) :][:1] = 0  # no text
    characters = len(decoder(tokenizer)(beginning[beginning != tokenizer.eos_token_id].tolist()))
    pieces = pieces_of_characters(tokenizer, counts)
    return unsuited_vocabulary(pieces, int(counts.sum()) / max(characters, 1), trained=trained)


def _has_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    return getattr(tokenizer, "backend_tokenizer", None) is not None
