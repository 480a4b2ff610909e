"""The processes that torchrun started, as far as scoring needs them."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor


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
        torch.distributed.init_process_group("gloo")
        return cls(torch.distributed.get_rank(), count)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, in all of them."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def leave(self) -> None:
        """Part from the others."""
        if self.count > 1:
            torch.distributed.destroy_process_group()
