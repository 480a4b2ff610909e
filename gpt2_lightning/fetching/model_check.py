"""Whether a folder holds a whole model: configuration, weights that fit it, and a tokenizer."""

from pathlib import Path

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetching.progress import megabytes
from gpt2_lightning.fetching.wanted import TOKENIZER
from gpt2_lightning.fetching.whole_files import check_content
from gpt2_lightning.pretrained import (
    ADAPTER,
    AGAIN,
    INDEX,
    PICKLED,
    WHOLE,
    check_files,
    check_weights,
    weight_files,
    what_tokenizer_lacks,
)


def looks_like_model(folder: Path) -> bool:
    """Tell whether a folder holds a part of a model, if not all of it."""
    names = {"config.json", WHOLE, WHOLE + INDEX, PICKLED, PICKLED + INDEX, "tokenizer.json"}
    names.add(ADAPTER)
    return any((folder / name).is_file() or (folder / name).is_symlink() for name in names)


def check_model(folder: Path) -> tuple[list[str], list[str]]:
    """See that a folder is a whole model.

    Args:
        folder: The folder.

    Returns:
        What it is, line by line; and what is wrong with it although it can be read.

    Raises:
        UsageError: If something is missing, cut short, damaged, or does not fit the rest.
    """
    from gpt2_lightning.data.tokenizer import load_tokenizer
    from gpt2_lightning.model.causal_lm import count_parameters, positions_of

    said = f"--check {folder}"
    files = [
        path
        for path in sorted(folder.iterdir())
        if (path.is_file() or path.is_symlink()) and not path.name.startswith(".")
    ]
    verified = check_content(folder, files)
    check_files(folder, said)
    model = check_weights(folder, said)
    if not any((folder / name).is_file() for name in TOKENIZER if name != "tokenizer_config.json"):
        raise UsageError(
            f"{said}: the tokenizer is missing: there is no tokenizer.json, nor vocab.json and "
            f"merges.txt. {AGAIN} The weights can be used with another's: "
            "--data.tokenizer openai-community/gpt2, say."
        )
    tokenizer = load_tokenizer(str(folder), flag="--check")
    tokens, vocabulary = len(tokenizer), int(model.config.vocab_size)
    if tokens > vocabulary:
        raise UsageError(
            f"{said}: the tokenizer has {tokens:,} tokens and the model {vocabulary:,}: it belongs "
            f"to another model. {AGAIN}"
        )
    lacking = what_tokenizer_lacks(tokenizer, model.config)
    weights = weight_files(folder, said)
    hashed = all(file.name in verified for file in weights)
    size = megabytes(sum(file.stat().st_size for file in weights))
    lines = [
        f"{folder}: a model{'' if lacking else ', complete'}.",
        f"  type        {model.config.model_type}, {count_parameters(model):,} parameters, "
        f"{positions_of(model):,} positions",
        f"  weights     {len(weights)} file{'s' * (len(weights) > 1)}, {size}"
        + (", hashes as when downloaded" if hashed else ""),
        f"  tokenizer   {tokens:,} tokens",
    ]
    return lines, [f"{folder}: {lacking}. {AGAIN}"] if lacking else []
