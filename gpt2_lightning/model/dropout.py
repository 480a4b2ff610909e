"""Dropout as a function of seed, rank and position, whose random numbers cost a CPU little."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LEVELS = 1 << 16  # probabilities are rounded to one part in so many


class Dropout(nn.Dropout):
    """torch's dropout, with its random numbers from NumPy's SFC64 where a CPU runs the model.

    torch may draw one number after another, on one thread: on an AMD EPYC that took several times
    as long. torch's generator gives the seed of each draw, so gradient checkpointing, which
    restores that generator, drops the same elements again. Compiled code and other devices have
    quick generators of their own.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Zero elements with the probability ``p`` while training, and scale up the others.

        Args:
            hidden: Of any shape.
        """
        dropped = round(self.p * LEVELS)
        is_own = hidden.device.type == "cpu" and not torch.compiler.is_compiling()
        if not self.training or dropped in (0, LEVELS) or not is_own:
            return super().forward(hidden)
        count = hidden.numel()
        words = np.random.SFC64(int(torch.randint(1 << 62, ()))).random_raw(-(-count // 4))
        kept = torch.from_numpy(words.view(np.uint16)[:count] >= dropped).view(hidden.shape)
        return hidden * kept.to(hidden.dtype).mul_(LEVELS / (LEVELS - dropped))


def replace_dropout(model: PreTrainedModel) -> None:
    """Put this module's dropout in the place of torch's, in a model's modules."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


def seed_dropout(seed: int, rank: int, position: int, device: torch.device) -> None:
    """Make what follows a function of its place in the run, wherever that was interrupted.

    Args:
        seed: Of the run.
        rank: Of the process among all.
        position: Micro-batches of this rank before this one.
        device: What the model runs on.
    """
    place = np.random.SeedSequence([seed, rank, position])
    number = int(place.generate_state(1, np.uint64)[0] >> 1)
    # torch.manual_seed would note a traceback for each kind of device that is not there
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
