"""A line on the screen, which a run outlives."""

import sys
from contextlib import suppress
from typing import TextIO


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line above the bar; a screen or pipe that has gone ends no run.

    Args:
        line: What to print.
        stream: Where; standard output unless said.
    """
    # a signal's handler may come in the middle of a write, which raises a RuntimeError
    with suppress(OSError, ValueError, RuntimeError):
        # not by a console of rich's, which would write into the bar
        print(line, file=stream or sys.stdout, flush=True)
