"""Count what a row's length does to WikiText: how much is padding, and how much is cut off."""

import numpy as np
from jsonargparse import auto_cli

from gpt2_lightning.data.datamodule import WikiTextDataModule


def row_lengths(source: str, tokenizer: str, subset: str | None = None, length: int = 128) -> None:
    """Print the share of positions that carry a token, and of tokens that are cut off.

    Args:
        source: Path or Hub id.
        tokenizer: Folder or Hub id.
        subset: Folder below the source, or configuration on the Hub.
        length: Tokens in a row.
    """
    data = WikiTextDataModule(
        source, subset, tokenizer=tokenizer, cleaning="tutorial", blocks="pad", block_size=length
    )
    data.prepare(["train"])
    data.setup("fit")
    lengths = np.diff(data.stores["train"].starts)
    kept = np.minimum(lengths, length)
    print(f"{len(lengths):,} rows, {lengths.sum():,} tokens")
    print(f"positions that carry a token: {kept.sum() / (len(kept) * length):.1%}")
    print(f"tokens that are cut off:      {1 - kept.sum() / lengths.sum():.1%}")


if __name__ == "__main__":
    auto_cli(row_lengths, as_positional=False)
