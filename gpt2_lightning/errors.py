"""The one exception that stands for a user's mistake."""


class UsageError(ValueError):
    """A mistake of the user's: shown as its message alone, without a traceback, with exit code 2.

    The message names the flag, what was found and what would work.
    """
