"""Streaming: a sample's text in pieces, as its tokens come."""

from collections.abc import Callable, Generator, Iterable, Sequence

CUT_CHARACTER = "\ufffd"  # what stands in a text for bytes that make no character


def text_pieces(
    tokens: Iterable[int], decode: Callable[[list[int]], str], stop: Sequence[str] = ()
) -> Generator[str, None, list[int]]:
    """Turn tokens into pieces of text that stay as they are, whatever comes next.

    What may still become another character, or the beginning of a stop string, is held back. The
    pieces joined are the text of all tokens up to the first stop string.

    Args:
        tokens: A sample's ids.
        decode: Ids -> text.
        stop: Strings before which the text ends.

    Yields:
        Pieces of text, none empty.

    Returns:
        The ids, as the generator's value.
    """
    ids: list[int] = []
    shown = 0
    text = ""
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if ends := [text.find(string) for string in stop if string in text]:
            text = text[: min(ends)]
            break
        settled = _settled(text, stop)
        if settled > shown:
            yield text[shown:settled]
            shown = settled
    if len(text) > shown:
        yield text[shown:]
    return ids


def _settled(text: str, stop: Sequence[str]) -> int:
    """Return the length of the text that no further token can change or cut off."""
    whole = text.rstrip(CUT_CHARACTER)
    held = max(
        (
            length
            for string in stop
            for length in range(1, min(len(string), len(whole) + 1))
            if whole.endswith(string[:length])
        ),
        default=0,
    )
    return len(whole) - held
