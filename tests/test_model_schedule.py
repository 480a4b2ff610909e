"""The learning rate's schedule, as a pure function of the step."""

from itertools import pairwise

import pytest
import torch

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.schedule import Schedule, ScheduleName


def factors(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0, 0]),
        ("wsd", [0, 0.5, 1, 1, 1, 0.5, 0, 0]),
        ("constant", [0, 0.5, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_factors(shape: ScheduleName, expected: list[float]) -> None:
    schedule = Schedule(shape, warmup_steps=2, total_steps=6, decay_share=0.5)
    assert factors(schedule, 8) == pytest.approx(expected, abs=1e-6)


def test_linear_is_the_transformers_trainers() -> None:
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, 3, 11).lr_lambdas[0]
    ours = Schedule("linear", warmup_steps=3, total_steps=11)
    assert factors(ours, 12) == pytest.approx([theirs(step) for step in range(12)])


def test_without_an_end_the_rate_stays_at_its_peak_until_a_change_gives_one() -> None:
    schedule = Schedule("linear", changes=[[4, 8]])
    assert factors(schedule, 10) == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    assert schedule.end == 8


def test_a_change_spreads_what_is_left_and_the_factor_has_no_jump() -> None:
    schedule = Schedule("linear", total_steps=100, changes=[[50, 60], [55, 75]])
    found = factors(schedule, 80)
    assert found[:51] == pytest.approx(factors(Schedule("linear", total_steps=100), 51))
    assert found[55] == pytest.approx(0.25)
    assert found[65] == pytest.approx(0.125)
    assert found[75] == found[79] == 0
    assert max(abs(a - b) for a, b in pairwise(found)) == pytest.approx(0.05)


@pytest.mark.parametrize("shape", ["linear", "cosine", "wsd"])
def test_a_change_says_nothing_of_the_steps_before_it(shape: ScheduleName) -> None:
    changed = Schedule(shape, warmup_steps=5, total_steps=90, changes=[[30, 40]])
    plain = Schedule(shape, warmup_steps=5, total_steps=90)
    assert factors(changed, 31) == factors(plain, 31)
    assert changed.factor(40) == pytest.approx(0)


@pytest.mark.parametrize("changes", [[[5]], [[5, 5]], [[-1, 4]], [[9, 20], [9, 30]]])
def test_changes_that_are_no_rising_pairs_are_refused(changes: list[list[int]]) -> None:
    with pytest.raises(UsageError, match=r"--model.schedule_changes .*such as \[\[0, 500\]"):
        Schedule("linear", changes=changes)


def test_the_warm_up_is_a_tenth_of_a_run_whose_time_is_short() -> None:
    schedule = Schedule("linear", warmup_steps=50, changes=[[0, 40], [10, 30]])
    assert schedule.factor(2) == 0.5
    assert schedule.factor(4) == 1
    # a change that comes later leaves the warm-up as it was
    assert Schedule("linear", warmup_steps=50, changes=[[10, 40]]).factor(25) == 0.5
