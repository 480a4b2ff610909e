import copy
from typing import Any

import torch

from gpt2_lightning.model.optim import (
    NEWTON_SCHULZ,
    MuonWithAdamW,
    build_adamw,
    orthogonalized,
)


def test_matrices_decay_also_where_a_strategy_has_flattened_them() -> None:
    from gpt2_lightning.model.gpt2 import Architecture
    from gpt2_lightning.model.module import GPT2Module

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


def _muon(weights: list[torch.nn.Parameter]) -> MuonWithAdamW:
    adamw = build_adamw(
        [(str(number), weight) for number, weight in enumerate(weights)],
        decayed={str(number) for number, weight in enumerate(weights) if weight.dim() == 2},
        learning_rate=0.01,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        fused=True,
    )
    return MuonWithAdamW(adamw, [weight for weight in weights[:-2] if weight.dim() == 2])


def _weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    shapes = [(8, 24), (8, 24), (24, 8), (8, 8), (8,), (16, 8), (8,)]
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


def _take_steps(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter]) -> None:
    for step in range(3):
        torch.manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()


def test_muon_is_torchs_and_the_rest_adamws() -> None:
    ours, theirs = _weights(), _weights()
    _take_steps(_muon(ours), ours)
    muon = torch.optim.Muon(
        theirs[:4], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    groups: list[dict[str, Any]] = [
        {"params": [theirs[5]], "weight_decay": 0.1},
        {"params": [theirs[4], theirs[6]]},
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=0.01,
        weight_decay=0.0,
        betas=(0.9, 0.95),
    )
    for step in range(3):
        torch.manual_seed(step)
        for weight in theirs:
            weight.grad = torch.randn(weight.shape)
        muon.step()
        adamw.step()
    before = _weights()
    for one, other, begin in zip(ours[:4], theirs[:4], before, strict=False):
        moved, error = (other - begin).norm(), (one - other).norm()
        assert error < 0.03 * moved  # torch's is rounded to bf16
    for one, other in zip(ours[4:], theirs[4:], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 8, 24), (1, 24, 8), (3, 8, 8)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_singular_values_are_those_of_the_iteration() -> None:
    torch.manual_seed(0)
    a, b, c = NEWTON_SCHULZ
    for rows, columns in ((8, 24), (24, 8), (8, 10)):
        matrix = torch.randn(1, rows, columns, dtype=torch.float64)
        matrix *= torch.logspace(0, -4, rows)[:, None]  # some of them never come near one
        expected = torch.linalg.svdvals(matrix) / matrix.norm()
        for _ in range(5):
            expected = a * expected + b * expected**3 + c * expected**5
        found = torch.linalg.svdvals(orthogonalized(matrix).double())
        torch.testing.assert_close(found, expected.sort(descending=True).values, rtol=0, atol=1e-4)


def test_muon_goes_on_exactly_from_its_state() -> None:
    whole, first = _weights(), _weights()
    optimizer = _muon(whole)
    _take_steps(optimizer, whole)
    _take_steps(optimizer, whole)
    stopped = _muon(first)
    _take_steps(stopped, first)
    state = copy.deepcopy(stopped.state_dict())
    again = [torch.nn.Parameter(weight.detach().clone()) for weight in first]
    resumed = _muon(again)
    resumed.load_state_dict(state)
    _take_steps(resumed, again)
    assert all(torch.equal(one, other) for one, other in zip(again, whole, strict=True))
