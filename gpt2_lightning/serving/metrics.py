"""What a Prometheus server is told."""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpt2_lightning.serving.served import Served

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters and times of a server, with a registry of its own.

    Args:
        models: Those that are served.
    """

    def __init__(self, models: Sequence[Served]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(models))
        self.requests = Counter(
            "gpt2_lightning_requests",
            "Answers, by path and status.",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "gpt2_lightning_request_seconds",
            "From a completion request's first byte to its answer's last.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "gpt2_lightning_first_token_seconds",
            "From a completion request's body to the first of its answer's text.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Engines(Collector):
    """Reads the engines when it is asked, so that they need not know of metrics."""

    def __init__(self, models: Sequence[Served]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily(
            "gpt2_lightning_running_samples", "Samples being written.", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "gpt2_lightning_waiting_requests", "Requests in the queue.", labels=["model"]
        )
        prompts = CounterMetricFamily(
            "gpt2_lightning_prompt_tokens", "Prompt tokens read.", labels=["model"]
        )
        written = CounterMetricFamily(
            "gpt2_lightning_new_tokens", "Tokens written.", labels=["model"]
        )
        steps = CounterMetricFamily(
            "gpt2_lightning_steps", "Passes that wrote a token of each sample.", labels=["model"]
        )
        for served in self._models:
            engine, labels = served.engine, [served.name]
            running.add_metric(labels, engine.running)
            waiting.add_metric(labels, engine.waiting)
            prompts.add_metric(labels, engine.prompt_tokens)
            written.add_metric(labels, engine.new_tokens)
            steps.add_metric(labels, engine.steps)
        return [running, waiting, prompts, written, steps]
