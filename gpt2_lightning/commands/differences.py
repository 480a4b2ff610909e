"""Two versions of a text, with what differs in colour."""

import re
from difflib import SequenceMatcher

from rich.text import Text

WORD = re.compile(r"\w+|\s|[^\w\s]")
GONE, NEW = "white on red", "black on green"


def differences(before: str, after: str) -> tuple[Text, Text]:
    """Colour what is gone from the first text and new in the second, word by word.

    Args:
        before: Some hundred characters; the time grows with their square.
        after: Likewise.
    """
    old, new = WORD.findall(before), WORD.findall(after)
    shown_before, shown_after = Text(), Text()
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        shown_before.append("".join(old[a:b]), None if kind == "equal" else GONE)
        shown_after.append("".join(new[c:d]), None if kind == "equal" else NEW)
    return shown_before, shown_after
