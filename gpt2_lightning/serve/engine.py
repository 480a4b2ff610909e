"""The engine: one thread per model, which generates the queued requests' samples in one batch."""

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

# Prompt tokens that are processed at a time; running samples wait meanwhile.
PROMPT_TOKENS_AT_A_TIME = 2048

# Tokens after which a sample yields its row of the batch to a waiting one. To continue, its text so
# far is processed again in one pass, which is cheap compared with this many steps.
TOKENS_PER_TURN = 256

LOGITS_ROWS_AT_A_TIME = 256  # of a prompt: 51 MB of them with GPT-2's vocabulary

log = logging.getLogger(__name__)


class RequestSample:
    """A sample of a request, with its tokens so far.

    Its text does not depend on the other samples in the batch.

    Args:
        prompt: Ids to continue.
        options: Sampling options; ``max_new_tokens`` may be 0.
        seed: Of this sample.
        tokens: The bytes of each token.
        end_of_text: Id that ends the text.
        logprobs: Number of likeliest tokens to return beside each; None for no log-probabilities.
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
        self.turn_began = 0  # number of new tokens when it joined the batch
        self.job: Job | None = None
        self.number = 0  # in its job
        after = () if echo else self.sequence.prompt
        self._text = TextAssembler(tokens, options.stop, end_of_text, after)

    @property
    def is_first(self) -> bool:
        """Whether its job has not begun, if it is waiting."""
        return self.number == 0 and not self.sequence.new

    def echo_prompt(self, logprobs: Sequence[Logprob] | None) -> None:
        """Send the prompt, with the log-probabilities of its tokens if wanted."""
        last = self.sequence.ended
        self._send(self._text.add_prompt(self.sequence.prompt, logprobs, last=last))

    def add(self, token: int, logprob: Logprob | None) -> None:
        """Add the next token, and send the text that has become final."""
        self.sequence.add(token)
        piece = self._text.add(token, logprob, last=self.sequence.ended)
        self.sequence.ended = piece.finish is not None
        self._send(piece)

    def _send(self, piece: Piece) -> None:
        if piece != Piece("", [], None) and self.job is not None:
            self.job.notify(self.number, piece)


class Job:
    """The samples of a request.

    Args:
        samples: The samples, without new tokens.
        notify: Called in the engine's thread with a sample's number and its next piece of text; it
            must not block.
        fail: Called in any thread with the reason why the job was aborted.
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
    """Too many requests are waiting."""


class Engine:
    """Continuous batching over one key-value cache.

    While others wait, a sample yields its row after each `TOKENS_PER_TURN` tokens and continues
    when it is its turn again, so that long texts do not block others.

    Args:
        model: A causal language model in eval mode, used by nothing else meanwhile.
        batch_size: Samples that are generated at the same time.
        max_queue: Jobs that may wait for their first sample to begin, while all rows are in use.
    """

    def __init__(self, model: PreTrainedModel, *, batch_size: int, max_queue: int) -> None:
        self.model = model
        self.batch_size = batch_size
        self.max_queue = max_queue
        self.prompt_tokens = self.new_tokens = self.steps = 0  # since the start
        self.batch = Batch(model, batch_size)
        self._running: dict[TokenSequence, RequestSample] = {}  # in the batch
        self._joining: list[RequestSample] = []  # between queue and batch
        self._waiting: deque[RequestSample] = deque()
        self._closing = False
        self._work = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Run the model once, which allocates the cache, and start the thread.

        Raises:
            UsageError: If the model's logits are not numbers, or memory is short.
        """
        try:
            self._check_model()
        except (RuntimeError, MemoryError) as error:  # on a CPU, torch raises a plain RuntimeError
            raise UsageError(
                f"--batch_size {self.batch_size}: there is not enough memory for its key-value "
                f"cache ({str(error).splitlines()[0][:200]}). Give a smaller one."
            ) from error
        self._thread.start()

    @torch.inference_mode()
    def _check_model(self) -> None:
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
        """Number of samples in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of jobs whose first sample has not begun."""
        with self._work:
            return self._queued()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            QueueFull: If too many are waiting.
        """
        with self._work:
            free = max(0, self.batch_size - len(self._running) - len(self._joining))
            if sum(it.is_first for it in islice(self._waiting, free, None)) >= self.max_queue:
                raise QueueFull
            self._waiting.extend(job.samples)
            self._work.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a job; its rows are free before the next token."""
        with self._work:
            job.cancelled = True
            if any(it.job is job for it in self._waiting):
                self._waiting = deque(it for it in self._waiting if it.job is not job)
            self._work.notify()

    def abort(self, error: Exception) -> None:
        """Abort all running and waiting jobs, with an error for their clients."""
        with self._work:
            samples = [*self._running.values(), *self._joining, *self._waiting]
        self._fail(samples, error)

    def close(self) -> None:
        """Finish the queue, then end the thread."""
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
                    log.exception("A batch of samples was aborted.")
                    lost = list(self._running.values())
                    self._leave(lost)
                    self.batch.leave(self.batch.sequences)
                    self._fail([*lost, *self._joining], error)
                self._joining = []

    def _next(self) -> list[RequestSample]:
        """Return the first samples of the queue that fit into the batch."""
        free = self.batch_size - len(self._running)
        count = longest = 0
        for sample in islice(self._waiting, free):
            longest = max(longest, len(sample.sequence.ids))
            if count and (count + 1) * longest > PROMPT_TOKENS_AT_A_TIME:
                break
            count += 1
        return [self._waiting.popleft() for _ in range(count)]

    def _join(self, joining: list[RequestSample]) -> None:
        """Add samples to the batch, and generate the next token of each."""
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
        """Generate one more token of every sample in the batch."""
        self._write(self.batch.step())
        self.steps += 1
        with self._work:  # as many samples as are waiting yield their rows, if their turn is over
            rows_wanted = len(self._waiting) + len(self._running) - self.batch_size
            yielding = [
                it
                for it in self._running.values()
                if len(it.sequence.new) - it.turn_began >= TOKENS_PER_TURN and not _is_cancelled(it)
            ][: max(0, rows_wanted)]
            self._waiting.extend(yielding)
            self._leave(yielding)

    def _write(self, drawn: Drawn) -> None:
        """Add each sample's token; samples that have ended leave the batch."""
        samples = [self._running[sequence] for sequence in drawn.sequences]
        logprobs: dict[int, Logprob] = {}
        rows = [row for row, it in enumerate(samples) if it.logprobs is not None]
        if rows:
            top = max(samples[row].logprobs or 0 for row in rows)
            found = logprobs_of(drawn.logits[rows], [drawn.tokens[row] for row in rows], top)
            logprobs = dict(zip(rows, found, strict=True))
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
    """Return the log-probabilities of ids and of the likeliest tokens, in nats.

    Args:
        logits: The model's logits before temperature and the like, shape ``(rows, vocabulary)``.
        ids: The token of each row.
        top: Number of likeliest tokens.
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
    """Return the log-probabilities of a prompt's tokens; the first one has none.

    Args:
        model: The model.
        hidden: Last hidden states, shape ``(tokens, width)``.
        prompt: The ids.
        top: Number of likeliest tokens beside each.
    """
    found = [Logprob(None, [])]
    head = model.get_output_embeddings()
    for begin in range(0, len(prompt) - 1, LOGITS_ROWS_AT_A_TIME):
        targets = prompt[begin + 1 : begin + 1 + LOGITS_ROWS_AT_A_TIME]
        found += logprobs_of(head(hidden[begin : begin + len(targets)]), targets, top)
    return found
