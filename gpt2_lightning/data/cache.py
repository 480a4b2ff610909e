"""Where what can be made again is kept."""

import os
from pathlib import Path


def cache_folder(cache_dir: str | None) -> Path:
    """Return the folder for tokens and tokenizers.

    Args:
        cache_dir: What the user asked for; null is ``gpt2_lightning`` below XDG_CACHE_HOME, which
            is ``~/.cache`` unless set.
    """
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(cache_dir or f"{home}/gpt2_lightning").expanduser()
