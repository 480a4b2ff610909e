import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.text import Perplexity as Oracle

from gpt2_lightning.evaluate.card import FIGURES, Card
from gpt2_lightning.evaluate.protocol import PUBLISHED
from gpt2_lightning.model.metrics import METRICS, BitsPerByte, CrossEntropy, MetricInfo, Perplexity

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (B, T, V) and targets (B, T) of uneven batches, some targets masked."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for size in (4, 4, 1):
        logits = torch.randn(size, 7, 50, generator=generator)
        targets = torch.randint(0, 50, (size, 7), generator=generator)
        targets[0, 5:] = -100
        made.append((logits, targets))
    return made


def nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def test_equals_torchmetrics_own() -> None:
    ours, oracle = Perplexity(), Oracle(ignore_index=-100)
    for logits, targets in batches():
        ours.update(nats(logits, targets), (targets != -100).sum())
        oracle.update(logits, targets)
    assert ours.compute().item() == pytest.approx(oracle.compute().item(), rel=1e-6)


def test_nothing_is_averaged_before_the_division() -> None:
    metric = CrossEntropy()
    metric.update(torch.tensor(10.0), torch.tensor(1))
    metric.update(torch.tensor(10.0), torch.tensor(9))
    assert metric.compute().item() == pytest.approx(2.0)


def test_the_three_share_their_sums() -> None:
    metrics = MetricCollection(
        {"loss": CrossEntropy(), "perplexity": Perplexity(), "bits_per_byte": BitsPerByte(8)},
        prefix="val/",
        compute_groups=[["loss", "perplexity", "bits_per_byte"]],
    )
    metrics.update(torch.tensor(8 * math.log(2)), torch.tensor(4))
    metrics.update(torch.tensor(8 * math.log(2)), torch.tensor(4))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx(
        {"val/loss": 2 * math.log(2), "val/perplexity": 4.0, "val/bits_per_byte": 2.0}
    )


def test_sums_of_many_small_batches_are_exact() -> None:
    metric = CrossEntropy()
    metric.update(torch.tensor(1e8), torch.tensor(1))
    for _ in range(1000):
        metric.update(torch.tensor(0.5), torch.tensor(1))
    assert metric.compute().item() == pytest.approx((1e8 + 500) / 1001, rel=1e-12)


def test_apple_gpus_have_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert CrossEntropy().nats.dtype == torch.float32


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_docs_say_of_each_metric_what_the_list_says(metric: MetricInfo) -> None:
    rows = [line for line in DOCS.read_text("utf-8").splitlines() if f"`{metric.name}`" in line]
    if "/" not in metric.name:  # of evaluate
        assert any(row.startswith("|") and metric.description in row for row in rows)
        return
    better = {True: "lower", False: "higher", None: "-"}[metric.lower_is_better]
    row = f"| `{metric.name}` | {metric.unit} | {better} | {metric.description} |"
    assert row in rows


def test_a_metric_is_listed_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


def test_the_figures_of_evaluate_are_those_of_its_card() -> None:
    keys = {field.name for field in fields(Card)}
    assert keys > set(FIGURES) >= {published.figure for published in PUBLISHED}
    assert {name for name in keys if name.endswith(("_perplexity", "_per_byte"))} == set(FIGURES)
