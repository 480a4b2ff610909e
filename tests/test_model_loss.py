from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2_lightning.model import loss
from gpt2_lightning.model.loss import summed_nats, token_nats


def case(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, rows // 2, 16, generator=generator)
    weight = torch.randn(97, 16, generator=generator)
    targets = torch.randint(0, 97, (2, rows // 2), generator=generator)
    targets[0, 1] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


class Operations(TorchDispatchMode):
    """Notes the types of the factors of every matrix product, and the shapes that are cast."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's own is not annotated
        self.products: list[set[torch.dtype]] = []
        self.casts: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.mm:
            self.products.append({factor.dtype for factor in args})
        if func is torch.ops.aten._to_copy.default:
            self.casts.append(args[0].shape)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("has_torchs_own", [True, False])
@pytest.mark.parametrize("rows", [4, 512, 1100])  # below, at and above the size of a piece
def test_equals_logits_and_cross_entropy(
    rows: int, has_torchs_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_torchs_own &= loss.HAS_LINEAR_CROSS_ENTROPY
    monkeypatch.setattr(loss, "HAS_LINEAR_CROSS_ENTROPY", has_torchs_own)
    hidden, weight, targets = case(rows)
    nats = summed_nats(hidden, weight, targets)
    (3 * nats).backward()
    gradients = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    reference = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (3 * reference).backward()
    torch.testing.assert_close(nats, reference, rtol=1e-6, atol=1e-6)
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0], hidden.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[1], weight.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(summed_nats(hidden, weight, targets), nats, rtol=1e-6, atol=0)


def test_no_target_counts_nothing_and_moves_nothing() -> None:
    hidden, weight, targets = case(8)
    nats = summed_nats(hidden, weight, torch.full_like(targets, -100))
    nats.backward()
    assert nats.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_a_confident_mistake_stays_finite() -> None:
    hidden = torch.tensor([[[1.0, 0.0]]])
    weight = torch.tensor([[120.0, 0.0], [0.0, 0.0]])
    assert summed_nats(hidden, weight, torch.tensor([[1]])).item() == pytest.approx(120.0)


def test_autocast_multiplies_in_bf16_and_counts_in_fp32() -> None:
    hidden, weight, targets = case(1100)
    exact = summed_nats(hidden, weight, targets)
    exact.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    wanted, wanted_of_weight = hidden.grad.clone(), weight.grad.clone()
    hidden.grad.zero_()
    weight.grad.zero_()
    operations = Operations()
    with operations, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # as Lightning
        nats = summed_nats(hidden.bfloat16(), weight, targets)
        nats.backward()
    # logits, gradient of the rows, gradient of the weight; no logits are made again
    assert operations.products == [{torch.bfloat16}] * 3 * 3
    assert operations.casts.count(weight.shape) == 1
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(exact.item(), rel=1e-3)
    assert (hidden.grad - wanted).norm() < 0.01 * wanted.norm()
    assert weight.grad is not None
    assert (weight.grad - wanted_of_weight).norm() < 0.01 * wanted_of_weight.norm()


def test_autocast_without_gradients_is_the_same_sum() -> None:
    hidden, weight, targets = case(1100)
    with torch.autocast("cpu", torch.bfloat16):
        trained = summed_nats(hidden, weight, targets)
        operations = Operations()
        with torch.no_grad(), operations:
            validated = summed_nats(hidden, weight, targets)
    torch.testing.assert_close(validated, trained.detach())
    assert operations.casts.count(weight.shape) == 1
    assert len(operations.products) == 3


def test_nats_of_each_token_sum_to_the_summed_ones() -> None:
    hidden, weight, targets = case(1100)
    nats = token_nats(hidden, weight, targets)
    assert nats.shape == targets.shape
    assert nats[0, 1] == 0
    torch.testing.assert_close(nats.sum(), summed_nats(hidden, weight, targets))
