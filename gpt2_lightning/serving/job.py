"""Job: the samples of a request, and who is told of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpt2_lightning.serving.draft import Draft
from gpt2_lightning.serving.writer import Piece


class Job:
    """The samples of a request.

    Args:
        drafts: The samples, nothing of them written.
        notify: Told, in the engine's thread, which sample has come further, and what became final;
            it must not wait.
        fail: Told, in whatever thread, that the job was given up, and why.
    """

    def __init__(
        self,
        drafts: Sequence[Draft],
        notify: Callable[[int, Piece], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.drafts = list(drafts)
        self.notify = notify
        self.fail = fail
        self.cancelled = False


class Row(NamedTuple):
    """One sample of a job, as a row of the batch or in the queue."""

    job: Job
    number: int

    @property
    def draft(self) -> Draft:
        """The sample."""
        return self.job.drafts[self.number]

    @property
    def is_first(self) -> bool:
        """Whether its job has not begun while it waits."""
        return self.number == 0 and not self.draft.new

    def tell(self, piece: Piece | None) -> None:
        """Tell of what has become final, if anything has."""
        if piece is not None and piece != Piece("", [], None):
            self.job.notify(self.number, piece)
