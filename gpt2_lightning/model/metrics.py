"""Every number that is logged or printed, by name; and perplexity: summed nats over counts."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection


@dataclass(frozen=True)
class MetricInfo:
    """What is known of a number; docs/metrics.md has the same words, and a test holds that.

    Attributes:
        name: Tag in TensorBoard and column of ``metrics.csv``; without a group, a key of a card.
        description: What it says.
        unit: Of its values.
        lower_is_better: None where it says nothing of how good a model is.
        column: Its heading in the tables on the screen and in the report; empty: not there.
        chart: Title of its chart in the report; empty: it has none.
        card: Its label in cards of ``evaluate`` and in model cards; empty: not there.
        monitored: Whether ``--checkpoint.monitor`` can choose by it.
    """

    name: str
    description: str
    unit: str
    lower_is_better: bool | None = None
    column: str = ""
    chart: str = ""
    card: str = ""
    monitored: bool = False


# The one list, in the order of the tables and charts.
METRICS = (
    MetricInfo(
        "val/perplexity",
        "exp(`val/loss`).",
        "-",
        lower_is_better=True,
        column="perplexity",
        card="token perplexity",
        monitored=True,
    ),
    MetricInfo(
        "val/loss",
        "Mean over the validation split, each token predicted once, without dropout.",
        "nats per token",
        lower_is_better=True,
        column="nats per token",
        card="nats per token",
        monitored=True,
    ),
    MetricInfo(
        "val/bits_per_byte",
        "The same per byte of the original text, where no text is lost.",
        "bits per byte",
        lower_is_better=True,
        column="bits per byte",
        card="bits per byte",
        monitored=True,
    ),
    MetricInfo(
        "val/loss_best",
        "`val/loss` of the best checkpoint, at its step; where another number chose it, that "
        "number's `_best` as well.",
        "nats per token",
        lower_is_better=True,
    ),
    MetricInfo(
        "val/raw_loss",
        "With `--model.averaging ema`: that of the weights that are trained; `val/loss` is the "
        "lower of the two.",
        "nats per token",
        lower_is_better=True,
        chart="Validation loss of the raw weights",
    ),
    MetricInfo(
        "val/averaged_loss",
        "With `--model.averaging ema`: that of the averaged weights.",
        "nats per token",
        lower_is_better=True,
        chart="Validation loss of the averaged weights",
    ),
    MetricInfo("test/perplexity", "exp(`test/loss`).", "-", lower_is_better=True),
    MetricInfo(
        "test/loss",
        "As `val/loss`, of the test split, by the verb `test`.",
        "nats per token",
        lower_is_better=True,
    ),
    MetricInfo(
        "test/bits_per_byte",
        "As `val/bits_per_byte`, of the test split.",
        "bits per byte",
        lower_is_better=True,
    ),
    MetricInfo(
        "train/loss",
        "Mean over the targets of one whole step, over all processes and accumulation, with "
        "dropout.",
        "nats per token",
        lower_is_better=True,
        monitored=True,
    ),
    MetricInfo(
        "train/perplexity",
        "exp(`train/loss`): of one step and with dropout, so it jumps about more than "
        "`val/perplexity`.",
        "-",
        lower_is_better=True,
    ),
    MetricInfo(
        "train/learning_rate", "The schedule's rate at this step.", "-", chart="Learning rate"
    ),
    MetricInfo(
        "train/tokens_per_second",
        "Targets per second since the last logged step, validation and saving left out.",
        "targets/s",
        chart="Predicted tokens/s",
    ),
    MetricInfo(
        "train/grad_norm",
        "Norm of all gradients before `--trainer.gradient_clip_val`.",
        "-",
        chart="Gradient norm, before clipping",
    ),
    MetricInfo(
        "train/skipped_steps",
        "Steps left out so far because loss or gradients were not finite (`--model.on_nonfinite "
        "skip`).",
        "steps",
        chart="Steps left out, their loss or gradients not being finite",
    ),
    MetricInfo("train/epoch", "Epochs of training so far, with their fractions.", "epochs"),
    MetricInfo("train/tokens_seen", "Targets predicted so far, of all processes.", "targets"),
    MetricInfo(
        "train/model_flops_per_second",
        "Operations of the model's mathematics, without recomputation.",
        "FLOP/s",
    ),
    MetricInfo(
        "train/peak_memory_gb",
        "The most memory held so far: the GPU's, or the process' on a CPU.",
        "10^9 bytes",
    ),
    MetricInfo(
        "samples/distinct_2",
        "Unique pairs of tokens over all pairs of all samples: 1 if none is repeated.",
        "share",
        chart="samples/distinct_2",
    ),
    MetricInfo(
        "samples/repeated_4",
        "Share of a sample's 4-grams that occurred in it before: high if it goes round in circles.",
        "share",
        chart="samples/repeated_4",
    ),
    MetricInfo(
        "samples/ended",
        "Share of the samples that ended by themselves: with an end-of-text or a stop string.",
        "share",
        chart="samples/ended",
    ),
    MetricInfo(
        "samples/longest_copy",
        "Tokens of the longest run that a sample shares with the training text: high where the "
        "model recites.",
        "tokens",
        chart="samples/longest_copy",
    ),
    # of `evaluate`
    MetricInfo(
        "token_perplexity",
        "exp(nats / tokens predicted)",
        "-",
        lower_is_better=True,
        card="token perplexity",
    ),
    MetricInfo(
        "word_perplexity",
        "exp(nats* / words)",
        "-",
        lower_is_better=True,
        card="word perplexity",
    ),
    MetricInfo(
        "byte_perplexity",
        "exp(nats* / bytes)",
        "-",
        lower_is_better=True,
        card="byte perplexity",
    ),
    MetricInfo(
        "bits_per_byte",
        "nats* / (ln 2 x bytes)",
        "bits per byte",
        lower_is_better=True,
        card="bits per byte",
    ),
    MetricInfo(
        "distinct_3",
        "unique n-grams of all samples together / n-grams of all samples together",
        "share",
    ),
)


def group(name: str) -> list[MetricInfo]:
    """Return the metrics of a group, such as ``val``; of the empty one, those of ``evaluate``."""
    return [metric for metric in METRICS if metric.name.rpartition("/")[0] == name]


def better_weights(figures: dict[str, float]) -> str | None:
    """Return which weights a validation found better: raw or averaged; None without an average."""
    raw, averaged = figures.get("val/raw_loss"), figures.get("val/averaged_loss")
    if raw is None or averaged is None:
        return None
    return "averaged" if averaged < raw else "raw"


def _sum_dtype() -> torch.dtype:
    # Apple's GPUs have no float64
    return torch.float32 if torch.backends.mps.is_available() else torch.float64


class CrossEntropy(Metric):
    """Mean nats per predicted token: summed nats over the number of targets.

    Nothing is averaged before the division, so short batches and uneven ranks weigh what they
    hold.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    nats: Tensor
    targets: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("nats", torch.zeros((), dtype=_sum_dtype()), dist_reduce_fx="sum")
        self.add_state("targets", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            nats: Summed nats of the batch's targets, a scalar.
            targets: Number of the batch's targets, an integer scalar.
        """
        self.nats += nats.to(self.nats.dtype)
        self.targets += targets

    def compute(self) -> Tensor:
        """Return nats per token."""
        return self.nats / self.targets


class Perplexity(CrossEntropy):
    """exp(nats / targets): the inverse geometric mean of the targets' probabilities.

    Reference: Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition
    tasks", 1977.
    """

    def compute(self) -> Tensor:
        """Return the perplexity per token."""
        return super().compute().exp()


class BitsPerByte(CrossEntropy):
    """Total nats over ln 2 and the bytes of the original text; comparable across tokenizers.

    Args:
        original_bytes: UTF-8 bytes of the text whose every token is counted.
    """

    def __init__(self, original_bytes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.original_bytes = original_bytes

    def compute(self) -> Tensor:
        """Return bits per byte."""
        return self.nats / (math.log(2) * self.original_bytes)


def split_metrics(prefix: str, original_bytes: int | None) -> MetricCollection:
    """Return what a split is measured by, all of one count of nats and targets.

    Args:
        prefix: Of the names: ``val/`` or ``test/``.
        original_bytes: UTF-8 bytes of its text; None leaves bits per byte out.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "loss": CrossEntropy(),
        "perplexity": Perplexity(),
    }
    if original_bytes is not None:
        metrics["bits_per_byte"] = BitsPerByte(original_bytes)
    return MetricCollection(metrics, prefix=prefix, compute_groups=[list(metrics)])
