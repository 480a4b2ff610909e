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


def test_matrices_decay_also_where_a_strategy_has_flattened_them() -> None:
    import torch

    from gpt2_lightning.model.gpt2 import Architecture
    from gpt2_lightning.model.module import GPT2Module
    from gpt2_lightning.model.optim import build_adamw

    shape = Architecture(layers=1, heads=1, width=8)
    module = GPT2Module(architecture=shape, vocab_size=16, block_size=8)
    flat = [(name, torch.nn.Parameter(it.flatten())) for name, it in module.named_parameters()]
    decays, spared = build_adamw(
        flat,
        decayed=module.decayed,
        learning_rate=1e-3,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        fused=False,
    ).param_groups
    name_of = {id(parameter): name for name, parameter in flat}
    assert (decays["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {name_of[id(it)] for it in spared["params"]} == {
        name for name, _ in flat if name.endswith("bias") or ".ln_" in name
    }
    assert len(decays["params"]) == 6  # both embeddings, and two matrices of attention and MLP each
