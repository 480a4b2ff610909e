import pytest

from gpt2_lightning.model.optim import ScheduleName, learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0, 0]),
        ("constant", [0, 0.5, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_factors(schedule: ScheduleName, expected: list[float]) -> None:
    factors = [
        learning_rate_factor(step, schedule=schedule, warmup_steps=2, total_steps=6)
        for step in range(8)
    ]
    assert factors == pytest.approx(expected, abs=1e-6)


def test_linear_is_the_transformers_trainers() -> None:
    import torch
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, 3, 11).lr_lambdas[0]
    for step in range(12):
        ours = learning_rate_factor(step, schedule="linear", warmup_steps=3, total_steps=11)
        assert ours == pytest.approx(theirs(step))
