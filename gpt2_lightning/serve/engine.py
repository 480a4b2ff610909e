"""The thread that owns a model: a queue over one batch, in which requests' samples take turns."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_lightning.data.token_text import Logprob, Piece, TextAssembler, TokenBytes
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.decoding import Batch, Drawn
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.model.sequence import TokenSequence

# Prompt tokens that are read between two tokens of the samples under way: those wait meanwhile.
PROMPT_TOKENS_AT_A_TIME = 2048

# Tokens after which a sample lets one that waits have its row of the batch. To go on, its text so
# far is read again, in one pass: little beside as many steps as this.
TURN = 256

LOGITS_ROWS_AT_A_TIME = 256  # of a prompt: 51 MB of them with GPT-2's vocabulary

log = logging.getLogger(__name__)


class RequestSample:
    """A sample of a request: what is asked for, and how far it has come.

    Its text depends on nothing else in the batch.

    Args:
        prompt: Ids to continue.
        options: How to draw; no tokens at all may be asked for.
        seed: Of this sample.
        tokens: What each token adds to a text.
        end_of_text: Id that ends the text.
        logprobs: How many of the likeliest tokens are wanted beside each; None for no logprobs.
        echo: Whether the prompt is a part of the answer.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: SamplingOptions,
        seed: int,
        *,
        tokens: TokenBytes,
        end_of_text: int,
        logprobs: int | None = None,
        echo: bool = False,
    ) -> None:
        self.sequence = TokenSequence(prompt, options, seed, end_of_text=end_of_text)
        self.logprobs = logprobs
        self.echo = echo
        self.turn_began = 0  # tokens that were new when it joined the batch
        self.job: Job | None = None
        self.number = 0  # in its job
        after = () if echo else self.sequence.prompt
        self._text = TextAssembler(tokens, options.stop, end_of_text, after)

    @property
    def is_first(self) -> bool:
        """Whether its job has not begun while it waits."""
        return self.number == 0 and not self.sequence.new

    def echo_prompt(self, logprobs: Sequence[Logprob] | None) -> None:
        """Tell of the prompt, and what the model gave each of its tokens, where asked for."""
        last = self.sequence.ended
        self._tell(self._text.add_prompt(self.sequence.prompt, logprobs, last=last))

    def add(self, token: int, logprob: Logprob | None) -> None:
        """Take the next token, and tell of what has become final."""
        self.sequence.add(token)
        piece = self._text.add(token, logprob, last=self.sequence.ended)
        self.sequence.ended = piece.finish is not None
        self._tell(piece)

    def _tell(self, piece: Piece) -> None:
        if piece != Piece("", [], None) and self.job is not None:
            self.job.notify(self.number, piece)


class Job:
    """The samples of a request.

    Args:
        samples: The samples, nothing of them written.
        notify: Told, in the engine's thread, which sample has come further, and what became final;
            it must not wait.
        fail: Told, in whatever thread, that the job was given up, and why.
    """

    def __init__(
        self,
        samples: Sequence[RequestSample],
        notify: Callable[[int, Piece], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.samples = list(samples)
        self.notify = notify
        self.fail = fail
        self.cancelled = False
        for number, sample in enumerate(samples):
            sample.job, sample.number = self, number


class QueueFull(Exception):
    """So many requests wait that no other is taken."""


class Engine:
    """Continuous batching over one key-value cache.

    While others wait, a sample gives its row up after each `TURN` tokens and goes on when it is
    its turn again: whoever asks for long texts, or does not read them, keeps nobody waiting long.

    Args:
        model: A causal language model in eval mode; nobody else may use it meanwhile.
        batch_size: Samples that are written at the same time.
        max_queue: Jobs that wait for their first sample to begin, while all rows are taken.
    """

    def __init__(self, model: PreTrainedModel, *, batch_size: int, max_queue: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.max_queue = max_queue
        self.prompt_tokens = self.new_tokens = self.steps = 0  # since the start
        self.batch = Batch(model, batch_size)
        self._running: dict[TokenSequence, RequestSample] = {}  # in the batch
        self._joining: list[RequestSample] = []  # out of the queue, on their way to the batch
        self._waiting: deque[RequestSample] = deque()
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
        sequence = TokenSequence([0], SamplingOptions(do_sample=False), 0, end_of_text=0)
        logits = self.batch.join([sequence]).logits
        self.batch.leave([sequence])
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
            if sum(it.is_first for it in islice(self._waiting, free, None)) >= self.max_queue:
                raise QueueFull
            self._waiting.extend(job.samples)
            self._work.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up; its rows are free before the next token."""
        with self._work:
            job.cancelled = True
            if any(it.job is job for it in self._waiting):
                self._waiting = deque(it for it in self._waiting if it.job is not job)
            self._work.notify()

    def give_up(self, error: Exception) -> None:
        """Give up what is being written and what waits, and tell so."""
        with self._work:
            given_up = [*self._running.values(), *self._joining, *self._waiting]
        self._fail(given_up, error)

    def close(self) -> None:
        """Finish what was queued, then end the thread."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join()

    def _queued(self) -> int:
        return sum(it.is_first for it in self._waiting)

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._work:
                    while not (self._waiting or self._running or self._closing):
                        self._work.wait()
                    joining = self._joining = self._next()
                self._leave([it for it in self._running.values() if _is_cancelled(it)])
                if not (joining or self._running) and self._closing:
                    return
                try:
                    if joining:
                        self._join(joining)
                    if self._running:
                        self._step()
                except Exception as error:
                    log.exception("A batch of samples was given up.")
                    lost = list(self._running.values())
                    self._leave(lost)
                    self.batch.leave(self.batch.sequences)
                    self._fail([*lost, *self._joining], error)
                self._joining = []

    def _next(self) -> list[RequestSample]:
        """Take out of the queue what fits, first come, first served."""
        free = self.batch_size - len(self._running)
        count = longest = 0
        for sample in islice(self._waiting, free):
            longest = max(longest, len(sample.sequence.ids))
            if count and (count + 1) * longest > PROMPT_TOKENS_AT_A_TIME:
                break
            count += 1
        return [self._waiting.popleft() for _ in range(count)]

    def _join(self, joining: list[RequestSample]) -> None:
        """Read texts, and write the next token after each."""
        of = {it.sequence: it for it in joining}
        beginning = {it.sequence for it in joining if not it.sequence.new}
        self.prompt_tokens += sum(map(len, {tuple(it.prompt) for it in beginning}))

        def on_read(sequence: TokenSequence, hidden: Tensor) -> None:
            sample, found = of[sequence], None
            if sample.echo and sequence in beginning:
                if sample.logprobs is not None:
                    found = prompt_logprobs(self.model, hidden, sequence.prompt, sample.logprobs)
                sample.echo_prompt(found)

        drawn = self.batch.join(list(of), on_read)
        for sequence in drawn.sequences:
            of[sequence].turn_began = len(sequence.new)
            self._running[sequence] = of[sequence]
        self._write(drawn)

    def _step(self) -> None:
        """Write one more token of every sample under way."""
        self._write(self.batch.step())
        self.steps += 1
        with self._work:  # those that have had a turn wait again, as many as wait for their rows
            wanted = len(self._waiting) + len(self._running) - self.batch_size
            had = [
                it
                for it in self._running.values()
                if len(it.sequence.new) - it.turn_began >= TURN and not _is_cancelled(it)
            ][: max(0, wanted)]
            self._waiting.extend(had)
            self._leave(had)

    def _write(self, drawn: Drawn) -> None:
        """Give each sample its token; those that have ended leave."""
        samples = [self._running[sequence] for sequence in drawn.sequences]
        logprobs: dict[int, Logprob] = {}
        asked = [row for row, it in enumerate(samples) if it.logprobs is not None]
        if asked:
            top = max(samples[row].logprobs or 0 for row in asked)
            found = logprobs_of(drawn.logits[asked], [drawn.tokens[row] for row in asked], top)
            logprobs = dict(zip(asked, found, strict=True))
        self.new_tokens += len(samples)
        for row, (sample, token) in enumerate(zip(samples, drawn.tokens, strict=True)):
            sample.add(token, logprobs.get(row))
        self._leave([it for it in samples if it.sequence.ended])

    def _leave(self, samples: Sequence[RequestSample]) -> None:
        self.batch.leave([it.sequence for it in samples])
        for sample in samples:
            del self._running[sample.sequence]

    def _fail(self, samples: Sequence[RequestSample], error: Exception) -> None:
        for job in dict.fromkeys(it.job for it in samples):
            if job is not None:
                self.cancel(job)
                job.fail(error)


def _is_cancelled(sample: RequestSample) -> bool:
    return sample.job is not None and sample.job.cancelled


def logprobs_of(logits: Tensor, ids: Sequence[int], top: int) -> list[Logprob]:
    """Return the logarithms of the probabilities of ids, and of the likeliest.

    Args:
        logits: The model's own, untouched by temperature and the like, ``(rows, vocabulary)``.
        ids: The token of each row.
        top: How many of the likeliest.
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(-1, torch.tensor(ids, device=logits.device)[:, None]) - total
    best, which = logits.topk(min(top, logits.shape[-1]), dim=-1)
    rows = zip(chosen[:, 0].tolist(), which.tolist(), (best - total).tolist(), strict=True)
    return [Logprob(own, list(zip(ranked, values, strict=True))) for own, ranked, values in rows]


def prompt_logprobs(
    model: PreTrainedModel, hidden: Tensor, prompt: Sequence[int], top: int
) -> list[Logprob]:
    """Return what the model gave each token of a prompt; its first one follows nothing.

    Args:
        model: The model.
        hidden: Last hidden states, shape ``(tokens, width)``.
        prompt: The ids.
        top: How many of the likeliest tokens beside each.
    """
    found = [Logprob(None, [])]
    head = model.get_output_embeddings()
    for begin in range(0, len(prompt) - 1, LOGITS_ROWS_AT_A_TIME):
        targets = prompt[begin + 1 : begin + 1 + LOGITS_ROWS_AT_A_TIME]
        found += logprobs_of(head(hidden[begin : begin + len(targets)]), targets, top)
    return found
