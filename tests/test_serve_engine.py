import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from gpt2_lightning.data.token_text import Piece, Token, TokenBytes
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.scoring import Window, score
from gpt2_lightning.generate.text_model import TextModel, load
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.serve.engine import Engine, Job, QueueFull, RequestSample

NEVER = -1  # an end-of-text that does not come
PROMPTS = [[5], [7, 8, 9], list(range(20, 60)), [3, 4], [60] * 17, [7, 8, 9, 10], [299], [0, 1]]


@pytest.fixture
def loaded(opinionated_model: Path) -> TextModel:
    return load(str(opinionated_model), device="cpu")


@pytest.fixture
def engine(loaded: TextModel) -> Iterator[Engine]:
    engine = Engine(loaded.model, batch_size=3, max_queue=100)
    engine.start()
    yield engine
    engine.close()


class Waiting:
    """A job and what came of it."""

    def __init__(self, *samples: RequestSample) -> None:
        self.pieces: list[list[Piece]] = [[] for _ in samples]
        self.error: Exception | None = None
        self.done = threading.Event()
        self.job = Job(samples, self._notify, self._fail)

    def _notify(self, number: int, piece: Piece) -> None:
        self.pieces[number].append(piece)
        if all(pieces and pieces[-1].finish for pieces in self.pieces):
            self.done.set()

    def _fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()

    def texts(self) -> list[str]:
        """Return the samples' texts, once they are there."""
        assert self.done.wait(60)
        return ["".join(piece.text for piece in pieces) for pieces in self.pieces]

    def tokens(self) -> list[Token]:
        """Return the first sample's tokens, once they are there."""
        assert self.done.wait(60)
        return [token for piece in self.pieces[0] for token in piece.tokens]


def sample(loaded: TextModel, prompt: list[int], **changes: Any) -> RequestSample:
    seed = changes.pop("seed", 0)
    own = {name: changes.pop(name) for name in ("logprobs", "echo") if name in changes}
    options = SamplingOptions(**{"max_new_tokens": 20, "do_sample": False} | changes)
    tokens = TokenBytes(loaded.tokenizer)
    return RequestSample(prompt, options, seed, tokens=tokens, end_of_text=NEVER, **own)


def at_rest(engine: Engine) -> bool:
    """Wait a little until nothing is left; tell whether that is so."""
    for _ in range(200):
        if len(engine.batch.sequences) == engine.running == engine.waiting == 0:
            return True
        time.sleep(0.01)
    return False


def submit(engine: Engine, *samples: RequestSample) -> Waiting:
    waiting = Waiting(*samples)
    engine.submit(waiting.job)
    return waiting


def by_transformers(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    output = cast(Any, model).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return list(output[0, len(prompt) :].tolist())


def test_greedy_is_transformers_greedy_whatever_joins_and_leaves(
    loaded: TextModel, opinionated_model: Path, engine: Engine
) -> None:
    lengths = [20, 3, 24, 1, 9, 20, 14, 2]
    samples = [
        sample(loaded, prompt, max_new_tokens=new)
        for prompt, new in zip(PROMPTS, lengths, strict=True)
    ]
    waiting = [submit(engine, *samples[:5])]
    time.sleep(0.01)  # the others find the batch under way
    waiting += [submit(engine, it) for it in samples[5:]]
    assert all(it.texts() for it in waiting)
    twin = load(str(opinionated_model), device="cpu").model
    for it, prompt, new in zip(samples, PROMPTS, lengths, strict=True):
        assert it.sequence.new == by_transformers(twin, prompt, new)
    assert at_rest(engine)
    assert engine.new_tokens == sum(lengths)
    assert engine.prompt_tokens == sum(map(len, PROMPTS))
    assert engine.steps < sum(lengths)  # they went on together


def test_samples_take_turns_and_write_the_same(
    loaded: TextModel, opinionated_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2_lightning.serve.engine.TOKENS_PER_TURN", 4)

    def asked() -> list[RequestSample]:
        drawn = [{"seed": seed, "do_sample": True, "temperature": 1.2} for seed in range(3)]
        return [
            *(sample(loaded, prompt, max_new_tokens=22) for prompt in PROMPTS),
            *(sample(loaded, [7, 8, 9], logprobs=2, echo=True, **changes) for changes in drawn),
        ]

    written = []
    for batch_size in (3, 11):  # with 11 rows, nobody waits
        engine = Engine(loaded.model, batch_size=batch_size, max_queue=11)
        waiting = [Waiting(it) for it in asked()]
        for it in waiting:
            engine.submit(it.job)
        engine.start()
        written.append([(it.texts(), [token.label for token in it.tokens()]) for it in waiting])
        assert at_rest(engine)
        # what is read again is no prompt
        assert engine.prompt_tokens <= sum(map(len, PROMPTS)) + 3 * 3
        engine.close()
    assert written[0] == written[1]
    twin = load(str(opinionated_model), device="cpu").model
    engine = Engine(loaded.model, batch_size=2, max_queue=11)
    greedy = asked()[: len(PROMPTS)]
    waiting = [submit(engine, it) for it in greedy]
    engine.start()
    assert all(it.texts() for it in waiting)
    engine.close()
    for written_one, prompt in zip(greedy, PROMPTS, strict=True):
        assert written_one.sequence.new == by_transformers(twin, prompt, 22)


def test_long_samples_keep_no_short_one_waiting(
    loaded: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2_lightning.serve.engine.TOKENS_PER_TURN", 8)
    engine = Engine(loaded.model, batch_size=2, max_queue=2)
    ended: list[str] = []

    def job(name: str, *samples: RequestSample) -> Job:
        def notify(_: int, piece: Piece) -> None:
            if piece.finish is not None:
                ended.append(name)

        return Job(samples, notify, lambda _: None)

    long = [sample(loaded, [number], max_new_tokens=60) for number in range(4)]
    engine.submit(job("long", *long))
    engine.submit(job("short", sample(loaded, [9], max_new_tokens=3)))
    engine.start()
    engine.close()
    assert ended == ["short", *["long"] * 4]


def test_the_last_position_can_be_written(
    loaded: TextModel, opinionated_model: Path, engine: Engine
) -> None:
    long = [number % 250 for number in range(63)]
    samples = [sample(loaded, long, max_new_tokens=1), sample(loaded, long[:24], max_new_tokens=40)]
    submit(engine, *samples).texts()
    twin = load(str(opinionated_model), device="cpu").model
    assert samples[0].sequence.new == by_transformers(twin, long, 1)
    assert samples[1].sequence.new == by_transformers(twin, long[:24], 40)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 1.3, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.4},
    ],
)
def test_a_seed_gives_the_text_of_generate_alone_and_in_company(
    loaded: TextModel, opinionated_model: Path, engine: Engine, options: dict[str, Any]
) -> None:
    loaded.tokenizer.eos_token = None  # `generate` shall not end early either
    ids = {text: loaded.tokenizer(text)["input_ids"] for text in ("The river", "a", "stone of")}
    twin = load(str(opinionated_model), device="cpu")
    of_generate = {
        text: twin.generate(text, max_new_tokens=20, seed=7, num_return_sequences=2, **options)
        for text in ids
    }
    changes = {"do_sample": True, **options}
    company = submit(
        engine,
        *(sample(loaded, it, seed=seed, **changes) for it in ids.values() for seed in (7, 8)),
        sample(loaded, [1, 2], seed=7, do_sample=True),
        sample(loaded, [1, 2, 3]),
    ).texts()
    alone = [
        submit(engine, sample(loaded, it, seed=seed, **changes)).texts()[0]
        for it in ids.values()
        for seed in (7, 8)
    ]
    assert company[:6] == alone
    ends = [text for texts in of_generate.values() for text in texts]
    # theirs ends where the end-of-text comes; ours was told of none
    assert all(ours.startswith(theirs) for ours, theirs in zip(alone, ends, strict=True))
    assert sum(map(len, ends)) > 0.5 * sum(map(len, alone))
    assert len(set(alone)) == 6


def test_logprobs_are_the_nats_of_scoring(loaded: TextModel, engine: Engine) -> None:
    prompt = [number * 7 % 250 for number in range(50)]
    echoed = submit(
        engine, sample(loaded, prompt, max_new_tokens=10, echo=True, logprobs=5)
    ).tokens()
    ids = np.array(prompt + by_transformers(loaded.model, prompt, 10))
    found = score(
        loaded.model,
        ids,
        [Window(0, number, number + 1, number) for number in range(1, len(ids))],
        batch_size=16,
        units=len(ids),
    )
    assert echoed[0].logprob.chosen is None
    ours = [-(token.logprob.chosen or 0.0) for token in echoed]
    assert ours == pytest.approx(found.nats.tolist(), abs=2e-5)
    assert found.total_nats > 50
    for token in echoed[1:]:
        values = [value for _, value in token.logprob.top]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert values[0] >= (token.logprob.chosen or 0.0)
    assert all(token.logprob.chosen == token.logprob.top[0][1] for token in echoed[50:])


def test_logprobs_tell_of_the_model_not_of_the_sampling(loaded: TextModel, engine: Engine) -> None:
    hot = sample(loaded, [5, 6], logprobs=1, do_sample=True, temperature=1.9, top_k=3, top_p=1.0)
    tokens = submit(engine, hot).tokens()
    logits = cast(Any, loaded.model)(torch.tensor([[5, 6, *hot.sequence.new]])).logits[0, 1:-1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(hot.sequence.new)[:, None])[:, 0]
    assert [token.logprob.chosen for token in tokens] == pytest.approx(expected.tolist(), abs=1e-4)


def test_nothing_is_written_where_nothing_is_asked_for(loaded: TextModel, engine: Engine) -> None:
    tokens = submit(
        engine, sample(loaded, list(range(64)), max_new_tokens=0, echo=True, logprobs=0)
    ).tokens()
    assert len(tokens) == 64
    assert engine.new_tokens == 0


def test_a_cancelled_job_leaves_its_rows(loaded: TextModel, engine: Engine) -> None:
    began = threading.Event()
    long = [sample(loaded, [number], max_new_tokens=60) for number in range(5)]
    pieces: list[Piece] = []

    def notify(number: int, piece: Piece) -> None:
        pieces.append(piece)
        engine.cancel(job)  # as soon as anything has come
        began.set()

    job = Job(long, notify, lambda error: None)
    engine.submit(job)
    assert began.wait(60)
    submit(engine, sample(loaded, [1])).texts()
    assert at_rest(engine)
    assert all(len(it.sequence.new) <= 2 for it in long)
    assert long[4].sequence.new == []


def test_the_queue_has_an_end(loaded: TextModel) -> None:
    engine = Engine(loaded.model, batch_size=2, max_queue=3)
    samples = [sample(loaded, [number]) for number in range(6)]
    waiting = [submit(engine, it) for it in samples[:5]]  # not started: nothing leaves the queue
    assert engine.waiting == 5
    with pytest.raises(QueueFull):
        submit(engine, samples[5])
    engine.cancel(waiting[1].job)
    waiting[1] = submit(engine, samples[5])
    engine.start()
    for it in waiting:
        assert it.texts()[0]
    engine.close()


def test_a_free_row_is_for_a_sample_not_for_a_request(loaded: TextModel) -> None:
    engine = Engine(loaded.model, batch_size=4, max_queue=1)
    several = [[sample(loaded, [number]) for _ in range(4)] for number in range(3)]
    submit(engine, *several[0])
    submit(engine, *several[1])
    with pytest.raises(QueueFull):
        submit(engine, *several[2])


def test_whoever_is_given_up_is_told(loaded: TextModel) -> None:
    engine = Engine(loaded.model, batch_size=2, max_queue=9)
    waiting = [submit(engine, sample(loaded, [number])) for number in range(5)]
    engine.abort(RuntimeError("enough"))
    assert all("enough" in str(it.error) for it in waiting)
    assert engine.waiting == 0


def test_memory_that_cannot_be_had(loaded: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")

    engine = Engine(loaded.model, batch_size=7, max_queue=1)
    monkeypatch.setattr(engine.batch, "_put", full)
    with pytest.raises(UsageError, match=r"--batch_size 7: .*can't allocate memory"):
        engine.start()


def test_what_was_queued_is_finished_before_the_end(loaded: TextModel) -> None:
    engine = Engine(loaded.model, batch_size=2, max_queue=9)
    engine.start()
    waiting = [submit(engine, sample(loaded, [number])) for number in range(5)]
    engine.close()
    assert all(it.done.is_set() for it in waiting)


def test_an_error_ends_its_batch_and_no_other(
    loaded: TextModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    head = loaded.model.get_output_embeddings
    monkeypatch.setattr(loaded.model, "get_output_embeddings", broken)
    lost = submit(engine, sample(loaded, [1]), sample(loaded, [2]))
    assert lost.done.wait(60)
    assert "out of memory" in str(lost.error)
    monkeypatch.setattr(loaded.model, "get_output_embeddings", head)
    assert submit(engine, sample(loaded, [1])).texts()[0]
    assert at_rest(engine)


def test_damaged_weights_are_found_at_the_start(loaded: TextModel) -> None:
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(float("nan"))
    with pytest.raises(UsageError, match="not numbers"):
        Engine(loaded.model, batch_size=1, max_queue=1).start()
