"""Account: what a device holds, moment by moment, in terms of so many bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

# glibc gives larger pieces back to the system when they are freed; smaller ones stay with the
# process (M_MMAP_THRESHOLD in mallopt(3): at most 32 MiB where longs have 64 bits).
LARGE = 32 * 2**20


@dataclass(frozen=True)
class Term:
    """A line of the account.

    Attributes:
        name: What it is.
        size: Bytes.
        small: Of these, bytes in pieces that a CPU's allocator keeps when they are freed.
    """

    name: str
    size: int
    small: int = 0


@dataclass(frozen=True)
class Moment:
    """What is held at a moment of the run.

    Attributes:
        name: The moment.
        terms: What is held.
    """

    name: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(term.size for term in self.terms)


@dataclass(frozen=True)
class Account:
    """The moments of a run, in time.

    Attributes:
        moments: What is held at each.
        imports: Bytes that the libraries took before, where they share the device's memory.
    """

    moments: tuple[Moment, ...]
    imports: int

    @property
    def peak(self) -> Moment:
        """The moment that holds most."""
        return max(self.moments, key=lambda moment: moment.size)

    @property
    def needed(self) -> int:
        """Bytes that the device has to have for the process."""
        return self.peak.size + self.imports


def term_of(name: str, pieces: Iterable[int]) -> Term:
    """Return a term that is held in pieces of so many bytes."""
    sizes = list(pieces)
    return Term(name, sum(sizes), sum(size for size in sizes if size < LARGE))
