import numpy as np
import pytest

from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate.card import Resamples, Sums
from gpt2_lightning.evaluate.compare import compare
from gpt2_lightning.evaluate.scoring import Score


def a_score(nats: np.ndarray) -> Score:
    return Score(nats, np.ones(len(nats), np.int64), 1.0)


def ratio(above: Sums, below: Sums) -> Sums:
    return above / below


@pytest.mark.slow
def test_holds_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        sample = generator.normal(5, 1, 40)
        drawn = Resamples({"total": sample, "count": np.ones(40)}, count=400, seed=seed)
        ends = drawn.interval(ratio, "total", "count")
        assert ends is not None
        held += ends[0] <= 5 <= ends[1]
    assert 180 <= held <= 198  # 95 % of 200, within what chance allows


def test_equal_articles_leave_nothing_to_doubt() -> None:
    drawn = Resamples({"nats": np.full(9, 2.0), "words": np.full(9, 4.0)})
    assert drawn.interval(ratio, "nats", "words") == (0.5, 0.5)


def test_one_article_says_nothing_of_others() -> None:
    one = Resamples({"nats": np.ones(1), "words": np.ones(1)})
    assert one.interval(ratio, "nats", "words") is None
    with pytest.raises(UsageError, match="--against: the text has one article"):
        compare(a_score(np.ones(1)), a_score(np.ones(1)), np.ones(1))


def test_a_small_difference_on_every_article_is_seen_though_articles_differ_much() -> None:
    nats = np.random.default_rng(0).uniform(1_000, 50_000, 60)
    bytes_ = np.full(60, 10_000)
    better = compare(a_score(0.99 * nats), a_score(nats), bytes_)
    assert better.interval[1] < 0
    assert better.better == 60
    assert better.verdict("A", "B") == "A is better than B, on 60 of 60 articles"
    worse = compare(a_score(nats), a_score(0.99 * nats), bytes_)
    assert worse.bits_per_byte == pytest.approx(-better.bits_per_byte)
    assert worse.verdict("A", "B") == "B is better than A, on 60 of 60 articles"


def test_noise_is_not_taken_for_a_difference() -> None:
    generator = np.random.default_rng(1)
    nats = generator.uniform(1_000, 5_000, 60)
    noise = generator.normal(0, 50, 60)
    found = compare(a_score(nats + noise - noise.mean()), a_score(nats), np.full(60, 1_000))
    assert found.interval[0] < 0 < found.interval[1]
    assert "cannot be distinguished" in found.verdict("A", "B")


def test_a_draw_without_a_figure_gives_no_interval() -> None:
    drawn = Resamples({"nats": np.array([0.0, 5.0, 0.0]), "words": np.array([0, 2, 0])})
    assert drawn.interval(ratio, "nats", "words") is None


@pytest.mark.slow
def test_a_long_text_is_drawn_less_often() -> None:
    quantities = {"nats": np.ones(100_000), "words": np.ones(100_000)}
    assert len(Resamples(quantities).sums["nats"]) == 1_000
    assert len(Resamples({"nats": np.ones(50), "words": np.ones(50)}).sums["nats"]) == 10_000


def test_equal_articles_are_nobodys() -> None:
    bytes_ = np.full(4, 10)
    found = compare(a_score(np.array([1.0, 2, 0, 0])), a_score(np.array([2.0, 3, 0, 0])), bytes_)
    assert (found.better, found.worse) == (2, 0)
