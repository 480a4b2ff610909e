"""The processes that torchrun started, as far as scoring needs them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from gpt2_lightning.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process among those of its run.

    Attributes:
        rank: This process.
        count: All of them.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> "Processes":
        """Meet the other processes, if torchrun started any.

        Sums are taken on the CPU, so that the same few numbers go the same way on every device.
        """
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls()
        # the others may wait while one downloads and tokenizes a large source
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))
        return cls(torch.distributed.get_rank(), count)

    @contextmanager
    def sharing_mistakes(self) -> Iterator[None]:
        """Run a block in all processes; a mistake that one of them finds is raised by all.

        They have all come to its end when one leaves it.

        Raises:
            UsageError: The first process' that found one.
        """
        mistake: UsageError | None = None
        try:
            yield
        except UsageError as error:
            mistake = error
        everyones = [mistake] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(everyones, mistake)
        for found in everyones:
            if found is not None:
                raise found

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, in all of them."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def leave(self) -> None:
        """Part from the others."""
        if self.count > 1:
            torch.distributed.destroy_process_group()
