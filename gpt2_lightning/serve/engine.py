"""The thread that owns a model: continuous batching over slots of one key-value cache."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from gpt2_lightning.data.token_text import Logprob
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.serve.sequence import Job, Row, logprobs_of, prompt_logprobs

log = logging.getLogger(__name__)


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


# Prompt tokens that are read between two tokens of the samples under way: those wait meanwhile.
PROMPT_TOKENS_AT_A_TIME = 2048

# Tokens after which a sample lets one that waits have its slot. To go on, its text so far is read
# again, in one pass: little beside as many steps as this.
TURN = 256


class QueueFull(Exception):
    """So many requests wait that no other is taken."""


class Engine:
    """Continuous batching with a key-value cache.

    While others wait, a sample gives its slot up after each `TURN` tokens and goes on when it is
    its turn again: whoever asks for long texts, or does not read them, keeps nobody waiting long.

    Args:
        model: A causal language model in eval mode; nobody else may use it meanwhile.
        batch_size: Samples that are written at the same time.
        max_queue: Jobs that wait for their first sample to begin, while all slots are taken.
    """

    def __init__(self, model: PreTrainedModel, *, batch_size: int, max_queue: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.max_queue = max_queue
        self.prompt_tokens = self.new_tokens = self.steps = 0  # since the start
        self.slots = Slots(batch_size, positions_of(model))
        self._running: list[Row] = []  # the sample in each slot in use
        self._joining: list[Row] = []  # out of the queue, on their way to a slot
        self._waiting: deque[Row] = deque()
        self._closing = False
        self._work = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Try the model, take the cache's memory, and begin.

        Raises:
            UsageError: If the model's logits are not numbers, or memory is short.
        """
        try:
            self._try()
        except (RuntimeError, MemoryError) as error:  # on a CPU, torch has no class of its own
            raise UsageError(
                f"--batch_size {self.batch_size}: the key-value cache of so many samples cannot be "
                f"had ({str(error).splitlines()[0][:200]}). Give a smaller one."
            ) from error
        self._thread.start()

    @torch.inference_mode()
    def _try(self) -> None:
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        hidden, cache = self._read(ids, torch.ones_like(ids))
        logits = self.model.get_output_embeddings()(hidden[:, -1])
        self.slots.put(cache, 0, 1)
        self.slots.drop(0)
        if not bool(logits.isfinite().all()):
            raise UsageError(
                "--model: its logits are not numbers (NaN or infinite). The weights are damaged, "
                "or its training has diverged; with --dtype bf16, try fp32."
            )

    @property
    def running(self) -> int:
        """Samples that are being written."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their first sample to begin."""
        with self._work:
            return self._queued()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            QueueFull: If too many wait.
        """
        with self._work:
            free = max(0, self.batch_size - len(self._running) - len(self._joining))
            if sum(row.is_first for row in islice(self._waiting, free, None)) >= self.max_queue:
                raise QueueFull
            self._waiting.extend(Row(job, number) for number in range(len(job.drafts)))
            self._work.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up; its slots are free before the next token."""
        with self._work:
            job.cancelled = True
            if any(row.job is job for row in self._waiting):
                self._waiting = deque(row for row in self._waiting if row.job is not job)
            self._work.notify()

    def give_up(self, error: Exception) -> None:
        """Give up what is being written and what waits, and tell so."""
        with self._work:
            rows = [*self._running, *self._joining, *self._waiting]
            jobs = dict.fromkeys(row.job for row in rows)
        for job in jobs:
            self.cancel(job)
            job.fail(error)

    def close(self) -> None:
        """Finish what was queued, then end the thread."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join()

    def _queued(self) -> int:
        return sum(row.is_first for row in self._waiting)

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._work:
                    while not (self._waiting or self._running or self._closing):
                        self._work.wait()
                    joining = self._joining = self._next()
                self._leave(lambda row: row.job.cancelled)
                if not (joining or self._running) and self._closing:
                    return
                try:
                    if joining:
                        self._join(joining)
                    if self._running:
                        self._step()
                except Exception as error:
                    log.exception("A batch of samples was given up.")
                    self._clear(error)
                self._joining = []

    def _next(self) -> list[Row]:
        """Take out of the queue what fits, first come, first served."""
        free = self.batch_size - len(self._running)
        count = longest = 0
        for row in islice(self._waiting, free):
            longest = max(longest, len(row.draft.ids))
            if count and (count + 1) * longest > PROMPT_TOKENS_AT_A_TIME:
                break
            count += 1
        return [self._waiting.popleft() for _ in range(count)]

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, DynamicCache]:
        cache = DynamicCache(config=self.model.config)
        output = self.model.base_model(ids, attention_mask=mask, cache=cache, use_cache=True)
        return output.last_hidden_state, cache

    def _join(self, joining: list[Row]) -> None:
        """Read texts, in one batch padded on the right, and write the next token after each."""
        texts = list(dict.fromkeys(tuple(row.draft.ids) for row in joining))
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, text in enumerate(texts):
            ids[line, : len(text)] = torch.tensor(text)
            mask[line, : len(text)] = 1
        hidden, cache = self._read(ids.to(self.model.device), mask.to(self.model.device))
        line_of = {text: line for line, text in enumerate(texts)}
        lines = {row: line_of[tuple(row.draft.ids)] for row in joining}
        lengths = {row: len(row.draft.ids) for row in joining}
        beginning = [row for row in joining if not row.draft.new]
        self.prompt_tokens += sum(map(len, {tuple(row.draft.prompt) for row in beginning}))
        for row in beginning:
            draft, found = row.draft, None
            if draft.echo and draft.logprobs is not None:
                found = prompt_logprobs(
                    self.model, hidden[lines[row]], draft.prompt, draft.logprobs
                )
            row.tell(draft.begin(found))
        writing = [row for row in joining if not row.draft.ended]
        if writing:
            last = [lengths[row] - 1 for row in writing]
            self._write(writing, hidden[[lines[row] for row in writing], last])
        for row in writing:
            if not row.draft.ended:
                self.slots.put(cache, lines[row], lengths[row])
                row.draft.turn_began = len(row.draft.new)
                self._running.append(row)

    def _step(self) -> None:
        """Write one more token of every sample under way."""
        ids = torch.tensor([row.draft.new[-1] for row in self._running], device=self.model.device)
        where = self.slots.step(self.model.device, self.model.dtype)
        hidden = self.model.base_model(ids[:, None], **where).last_hidden_state
        self._write(self._running, hidden[:, -1])
        self.steps += 1
        self._leave(lambda row: row.draft.ended)
        self._take_turns()

    def _take_turns(self) -> None:
        """Let samples that have had a turn wait again, as many as wait for their slots."""
        with self._work:
            wanted = len(self._waiting) + len(self._running) - self.batch_size
            had = [
                row
                for row in self._running
                if len(row.draft.new) - row.draft.turn_began >= TURN and not row.job.cancelled
            ][: max(0, wanted)]
            self._waiting.extend(had)
            self._leave(lambda row: row in had)

    def _write(self, rows: list[Row], hidden: Tensor) -> None:
        """Draw a token of each sample from its last hidden state, ``(rows, width)``."""
        logits = self.model.get_output_embeddings()(hidden)
        drafts = [row.draft for row in rows]
        ids = logits.argmax(-1).tolist()
        for number, draft in enumerate(drafts):
            if not draft.is_greedy:
                ids[number] = draft.draw(logits[number : number + 1])
        logprobs: dict[int, Logprob] = {}
        asked = [number for number, draft in enumerate(drafts) if draft.logprobs is not None]
        if asked:
            top = max(drafts[number].logprobs or 0 for number in asked)
            found = logprobs_of(logits[asked], [ids[number] for number in asked], top)
            logprobs = dict(zip(asked, found, strict=True))
        self.new_tokens += len(ids)
        for number, row in enumerate(rows):
            row.tell(row.draft.add(ids[number], logprobs.get(number)))

    def _leave(self, leaves: Callable[[Row], bool]) -> None:
        for slot in reversed(range(len(self._running))):
            if leaves(self._running[slot]):
                self.slots.drop(slot)
                last = self._running.pop()
                if slot < len(self._running):
                    self._running[slot] = last

    def _clear(self, error: Exception) -> None:
        jobs = list(dict.fromkeys(row.job for row in [*self._running, *self._joining]))
        for job in jobs:
            self.cancel(job)
            job.fail(error)
        while self.slots.used:
            self.slots.drop(self.slots.used - 1)
        self._running = []
