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

from gpt2_lightning.data.articles import CHARACTERS_PER_STRETCH, stretches
from gpt2_lightning.data.token_text import CUT_CHARACTER, decoder
from gpt2_lightning.errors import UsageError, reason
from gpt2_lightning.pretrained import load_tokenizer_files
from gpt2_lightning.storage import scratch_folder, whole_folder
from gpt2_lightning.untrusted import is_inside

log = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"  # GPT-2's own, so that every tool for GPT-2 knows it

BYTES = 256  # a byte-level BPE begins with one token for each

# How GPT-2 parts words, as `tokenizers` has it for its ByteLevel pre-tokenizer.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

LONGEST_LEARNED = 512  # characters of a word; a merge goes through each word that has its pair

MOST_LEARNED = 1 << 22  # characters of a text without blanks that the training holds

# Of GPT-2's tokens of a sentence in German or Polish 3 to 15 % are pieces of a character, in
# Russian or Arabic more than four in ten, in Chinese or Korean nine.
MOST_PIECES = 0.25

SAMPLED = 100_000  # tokens of a text's beginning

FLAG = "--data.tokenizer (unless given, that of --model.pretrained)"


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder for tokens and tokenizers.

    Args:
        cache_dir: What the user asked for; null is ``gpt2_lightning`` below XDG_CACHE_HOME, which
            is ``~/.cache`` unless set.
    """
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(cache_dir or f"{home}/gpt2_lightning").expanduser()


def load_tokenizer(
    name: str, revision: str | None = None, *, flag: str = FLAG
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and see that it can end a text and pad a batch.

    A tokenizer without an end-of-text, as Chinese GPT-2s with BERT's vocabulary have it, takes
    its separator instead, and says so. Padding is the end-of-text where there is none.

    Args:
        name: Hub id, or folder with tokenizer files.
        revision: Branch, tag or commit on the Hub.
        flag: Which named it, for messages.

    Raises:
        UsageError: If there is no tokenizer of that name, it is empty, or it has neither an
            end-of-text nor a separator.
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
            "The tokenizer %s has no end-of-text token; its separator %s ends each text instead.",
            name,
            tokenizer.sep_token,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE in GPT-2's manner.

    Memory grows with the different words. A word of more than 512 characters is learned from in
    pieces, and a text without blanks, which is nothing but different words, from a sample of 4
    million characters, evenly spread over it.

    Args:
        texts: The training text, in pieces that end with a word.
        vocab_size: Tokens at most, end-of-text included; a small text may give fewer.

    Returns:
        A tokenizer whose last id is the end-of-text.

    Raises:
        UsageError: If ``vocab_size`` leaves no room for the 256 bytes and the end-of-text.

    Reference:
        Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units",
        https://arxiv.org/abs/1508.07909; on bytes: Radford et al., "Language Models are
        Unsupervised Multitask Learners", 2019.
    """
    from tokenizers import ByteLevelBPETokenizer, Regex
    from tokenizers.pre_tokenizers import ByteLevel, FixedLength, Sequence, Split

    if vocab_size <= BYTES:
        raise UsageError(
            f"--data.vocab_size {vocab_size}: a byte-level vocabulary has at least {BYTES + 1} "
            "tokens: 256 bytes and the end-of-text. Try 2048."
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
        merges=merges,  # type: ignore[arg-type] # its annotation forgets the pairs it takes
        unk_token=None,  # type: ignore[arg-type] # bytes leave nothing unknown
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )
    return tokenizer


def _sample(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts in stretches; of one without blanks, some that are evenly spread over it."""
    for text in texts:
        for part in stretches(text):
            if len(part) <= 2 * CHARACTERS_PER_STRETCH:
                yield part
                continue
            starts = range(0, len(part), CHARACTERS_PER_STRETCH)
            step = -(-len(part) // MOST_LEARNED)
            if step > 1:
                log.info(
                    "The tokenizer learns from one in %d of %s characters without a blank.",
                    step,
                    f"{len(part):,}",
                )
            for start in starts[::step]:
                yield part[start : start + CHARACTERS_PER_STRETCH]


def set_model_max_length(tokenizer: PreTrainedTokenizerBase, positions: int) -> None:
    """Tell a tokenizer how many positions its model has, before it is saved beside the model."""
    tokenizer.model_max_length = positions


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the tokenizer's files by name, as text, so that a checkpoint can carry them."""
    with scratch_folder() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())}


def save_tokenizer_files(files: Mapping[str, str], folder: Path) -> None:
    """Write a tokenizer's files into a folder named by their content.

    Raises:
        UsageError: If a name is more than that of a file.
    """
    for name in files:
        if "/" in name or not is_inside(folder, name):
            raise UsageError(f"The checkpoint's tokenizer has a file named {name!r}: not used.")
    with whole_folder(folder) as writing:
        for name, text in files.items():
            (writing / name).write_text(text, encoding="utf-8")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of what decides the ids: vocabulary, rules and end-of-text."""
    # tokenizer_config.json also says where the tokenizer came from, which changes no id
    files = tokenizer_files(tokenizer)
    files.pop("tokenizer_config.json", None)
    shaping = json.dumps([files, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(shaping.encode()).hexdigest()


def cuts_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a text may be cut before a space without changing its ids.

    True for GPT-2's byte-level tokenizers, whose pattern never joins a space to what stands before
    it, and for BERT's, which part all words at white space; nothing looks back across a cut.
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
    """Tell whether the ids determine the text's bytes, as those of a byte-level tokenizer do."""
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
    """Name what of a text its tokens do not give back.

    Args:
        text: What was tokenized.
        back: What its tokens give.
        unknown: Whether the unknown token is among them.
    """
    if back in (text, f" {text}"):  # some put a space before every text
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
    """Say what a text's tokens do not give back; nothing where they give back all.

    Args:
        lost: What a token store's manifest says; None where it is of an earlier version, which did
            not look.
        tokenizer: What made the tokens.
    """
    if lost is None and not keeps_every_byte(tokenizer):
        return "it is not byte-level, and an earlier version stored its tokens without looking"
    return " and ".join(filter(None, [", ".join((lost or [])[:-1]), *(lost or [])[-1:]]))


def pieces_of_characters(
    tokenizer: PreTrainedTokenizerBase, counts: npt.NDArray[np.int64]
) -> float:
    """Return the share of tokens that hold no whole character, but a part of its bytes.

    Args:
        tokenizer: What made them.
        counts: How often each id occurs, shape ``(ids,)``.
    """
    decode = decoder(tokenizer)
    broken = [id_ for id_ in np.flatnonzero(counts).tolist() if CUT_CHARACTER in decode([id_])]
    return float(counts[broken].sum() / max(counts.sum(), 1))


def unsuited_vocabulary(pieces: float, per_character: float, *, trained: bool) -> str | None:
    """Return a warning where a vocabulary lacks most of a text's characters.

    Args:
        pieces: Share of the training split's tokens that hold only a part of a character.
        per_character: Tokens to a character.
        trained: Whether the tokenizer is trained on this text.
    """
    if pieces <= MOST_PIECES:
        return None
    remedy = (
        "A larger --data.vocab_size would have more whole characters."
        if trained
        else "Take a model whose tokenizer was made for it (--model.pretrained "
        "uer/gpt2-chinese-cluecorpussmall for Chinese, say), or train one from scratch "
        "(--model.pretrained null)."
    )
    return (
        f"The vocabulary does not suit this language: {100 * pieces:.1f} % of the tokens hold only "
        f"a part of a character, and it takes {per_character:.2f} tokens to a character (GPT-2 on "
        "English: about 0.23). A model will spend its positions on spelling. " + remedy
    )


def sampled_vocabulary(
    tokenizer: PreTrainedTokenizerBase, ids: npt.NDArray[Any], *, trained: bool
) -> str | None:
    """Return `unsuited_vocabulary` of a text's beginning, which takes a tenth of a second.

    Args:
        tokenizer: What made the ids.
        ids: Those of the training split.
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
