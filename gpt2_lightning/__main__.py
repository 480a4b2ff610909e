"""``python -m gpt2_lightning``."""

from gpt2_lightning.cli import main

if __name__ == "__main__":
    main()
