"""Dropout: of how many elements, the same ones again, and beside torch's."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpt2_lightning.model.dropout import Dropout, replace_dropout, seed_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_the_rest_is_scaled_up(probability: float) -> None:
    seed_dropout(1, 0, 0, CPU)
    found = Dropout(probability)(torch.ones(333, 301))
    assert (found == 0).float().mean().item() == pytest.approx(probability, abs=0.01)
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-4)


def test_rows_columns_and_neighbours_are_independent() -> None:
    seed_dropout(1, 0, 0, CPU)
    kept = (Dropout(0.5)(torch.ones(1000, 500)) != 0).float() * 2 - 1
    for product in (kept[1:] * kept[:-1], kept[:, 1:] * kept[:, :-1], kept[:, 4:] * kept[:, :-4]):
        assert abs(product.mean().item()) < 0.01
    assert kept.mean(0).abs().max() < 0.2
    assert kept.mean(1).abs().max() < 0.25


def test_place_in_the_run_decides() -> None:
    def draw(seed: int, rank: int, position: int) -> torch.Tensor:
        seed_dropout(seed, rank, position, CPU)
        dropout = Dropout(0.5)
        return torch.stack([dropout(torch.ones(64)), dropout(torch.ones(64))])

    first = draw(1, 0, 7)
    assert torch.equal(first, draw(1, 0, 7))
    assert not torch.equal(first[0], first[1])  # each layer drops others
    for other in ((2, 0, 7), (1, 1, 7), (1, 0, 8)):
        assert not torch.equal(first, draw(*other))


def test_the_gradient_is_of_what_was_kept_also_when_recomputed() -> None:
    hidden = torch.randn(8, 7, requires_grad=True)
    seed_dropout(1, 0, 0, CPU)
    found = torch.utils.checkpoint.checkpoint(Dropout(0.5), hidden, use_reentrant=False)
    found.sum().backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad * hidden, found)


def test_torchs_own_where_it_serves() -> None:
    ones = torch.ones(4, 8)
    assert Dropout(0.5).eval()(ones) is ones
    assert torch.equal(Dropout(0.0)(ones), ones)
    assert not Dropout(1.0)(ones).any()
    with patch("torch.compiler.is_compiling", return_value=True):
        torch.manual_seed(1)
        found = Dropout(0.5)(ones)
    torch.manual_seed(1)
    assert torch.equal(found, torch.nn.functional.dropout(ones, 0.5))


def test_half_precision_stays_half() -> None:
    assert Dropout(0.1)(torch.ones(16, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_every_module_of_the_model_is_replaced(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    keys = list(model.state_dict())
    before = [it.p for it in model.modules() if type(it) is torch.nn.Dropout]
    replace_dropout(model)
    assert [it.p for it in model.modules() if type(it) is Dropout] == before
    assert before
    assert not any(type(it) is torch.nn.Dropout for it in model.modules())
    assert list(model.state_dict()) == keys
