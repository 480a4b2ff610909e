"""The key-value cache of the samples that are being written, a slot for each."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer


class Slots:
    """Slots 0 to ``used - 1`` hold the samples that are being written, in the order of `lengths`.

    The token at position p of a sample stands in column p of its slot: samples of any length go on
    together, nothing is moved when another joins, and when one leaves, the last takes its place.
    All memory is taken at the first use; it does not grow.

    Args:
        count: Slots.
        positions: Columns of each: the model's positions.
    """

    def __init__(self, count: int, positions: int) -> None:
        self.count = count
        self.positions = positions
        self.lengths: list[int] = []  # columns that are filled, of each slot in use
        # of each layer, shape (slots, heads, positions, head width)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rows = self.columns = torch.empty(0, dtype=torch.long)  # where the next tokens go

    @property
    def used(self) -> int:
        """Number of slots in use."""
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """Memory of all slots."""
        return sum(tensor.nbytes for tensor in [*self.keys, *self.values])

    def put(self, cache: DynamicCache, row: int, tokens: int) -> None:
        """Copy a row of a cache that was just filled into the next free slot.

        Args:
            cache: Of a batch padded on the right.
            row: Row of that batch.
            tokens: Columns of the row that are no padding.
        """
        filled = cast(list[DynamicLayer], cache.layers)
        if not self.keys:
            self.keys = [self._room_for(layer.keys) for layer in filled]
            self.values = [self._room_for(layer.values) for layer in filled]
        for number, layer in enumerate(filled):
            self.keys[number][self.used, :, :tokens] = cast(Tensor, layer.keys)[row, :, :tokens]
            self.values[number][self.used, :, :tokens] = cast(Tensor, layer.values)[row, :, :tokens]
        self.lengths.append(tokens)

    def drop(self, slot: int) -> None:
        """Free a slot; the last one in use moves there."""
        tokens = self.lengths.pop()
        if slot == self.used:
            return
        self.lengths[slot] = tokens
        for tensor in [*self.keys, *self.values]:
            tensor[slot, :, :tokens] = tensor[self.used, :, :tokens]

    def step(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Make room for one more token in every slot in use.

        Returns:
            The model's arguments beside the tokens' ids, ``(used, 1)``: ``position_ids``,
            ``attention_mask`` (to add to the scores of attention, ``(used, 1, 1, columns)``)
            and ``cache``.
        """
        self.rows = torch.arange(self.used, device=device)
        self.columns = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        seen = torch.arange(max(self.lengths), device=device) <= self.columns[:, None]
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        return {
            "position_ids": self.columns[:, None],
            "attention_mask": mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None, None],
            "cache": Cache(layers=[SlotLayer(self, number) for number in range(len(self.keys))]),
            "use_cache": True,
        }

    def _room_for(self, like: Tensor | None) -> Tensor:
        _, heads, _, width = cast(Tensor, like).shape
        # zeros, not whatever was there: masked columns count nothing, but nothing times NaN is NaN
        return cast(Tensor, like).new_zeros(self.count, heads, self.positions, width)


class SlotLayer(CacheLayerMixin):
    """One layer of the slots, as transformers' models use a cache.

    Args:
        slots: Whose layer it is.
        number: Which layer.
    """

    is_sliding = False

    def __init__(self, slots: Slots, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # it has no annotations
        self.slots = slots
        self.number = number
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values; return those of all columns in use."""
        slots, used, end = self.slots, self.slots.used, max(self.slots.lengths)
        keys, values = slots.keys[self.number], slots.values[self.number]
        keys[slots.rows, :, slots.columns] = key_states[:, :, 0]
        values[slots.rows, :, slots.columns] = value_states[:, :, 0]
        return keys[:used, :, :end], values[:used, :, :end]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the memory is there from the beginning."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the columns in use, and the first of them."""
        return max(self.slots.lengths, default=0), 0

    def get_seq_length(self) -> int:
        """Return the columns in use."""
        return max(self.slots.lengths, default=0)

    def get_max_length(self) -> int:
        """Return the columns there are."""
        return self.slots.positions
