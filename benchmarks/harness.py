"""lm-evaluation-harness itself beside `evaluate --protocol articles`, on the same articles.

    pip install -c constraints.txt -e ".[harness]"
    python -m benchmarks.harness --model gpt2 --source wikitext --subset wikitext-2-raw-v1

The harness' own ``wikitext`` task is taken, pointed at the articles as a local file.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from jsonargparse import auto_cli

FIGURES = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def by_harness(model: str, articles: list[str], batch_size: int) -> dict[str, float]:
    """Return the harness' figures, and the seconds it took."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext import preprocess_wikitext

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "articles.jsonl"
        lines = [json.dumps({"page": article}) for article in articles]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        task = {
            "task": "wikitext",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "output_type": "loglikelihood_rolling",
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": preprocess_wikitext.wikitext_detokenizer,
            "process_results": preprocess_wikitext.process_results,
            "metric_list": [{"metric": figure} for figure in FIGURES],
        }
        language_model = HFLM(
            pretrained=model, device="cpu", dtype="float32", batch_size=batch_size
        )
        start = time.perf_counter()
        found = simple_evaluate(model=language_model, tasks=[task], bootstrap_iters=0)
        seconds = time.perf_counter() - start
    results = cast(dict[str, Any], found)["results"]["wikitext"]
    return {figure: results[f"{figure},none"] for figure in FIGURES} | {"seconds": seconds}


def by_evaluate(
    model: str, source: str, subset: str | None, batch_size: int
) -> tuple[dict[str, float], list[str]]:
    """Return our figures, the seconds they took, and the articles."""
    from gpt2_lightning.data.datamodule import WikiTextDataModule
    from gpt2_lightning.inference.checkpoint import load_model
    from gpt2_lightning.inference.device import place
    from gpt2_lightning.inference.evaluation import Protocol, evaluate, rows_of

    loaded = load_model(model)
    place(loaded.model, "cpu", "fp32")
    data = WikiTextDataModule(source=source, subset=subset)
    articles: list[str] = []
    for row in rows_of(data, "test"):
        if row.begins:
            articles.append("")
        articles[-1] += row.text
    card, _, _ = evaluate(loaded, model, data, "test", Protocol("articles"), batch_size=batch_size)
    return {
        **{figure: cast(float, getattr(card, figure)) for figure in FIGURES},
        "seconds": card.seconds,
    }, articles


def main(
    model: str,
    source: str = "Salesforce/wikitext",
    subset: str | None = "wikitext-2-raw-v1",
    batch_size: int = 4,
    output: str | None = None,
) -> None:
    """Print both sides' figures and their ratios.

    Args:
        model: Folder in Hugging Face format, or Hub id.
        source: As ``--data.source``.
        subset: As ``--data.subset``.
        batch_size: Windows at a time, on both sides.
        output: Write the figures to this file, as JSON.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ours, articles = by_evaluate(model, source, subset, batch_size)
    harness = by_harness(model, articles, batch_size)
    print(f"{len(articles)} articles of {source} {subset or ''}, {model}, CPU, fp32")
    print(f"{'':18}{'evaluate':>16}{'lm-eval':>16}{'ratio - 1':>14}")
    for figure in FIGURES:
        ratio = ours[figure] / harness[figure] - 1
        print(f"{figure:18}{ours[figure]:16.6f}{harness[figure]:16.6f}{ratio:14.1e}")
    print(f"{'seconds':18}{ours['seconds']:16.1f}{harness['seconds']:16.1f}")
    if output is not None:
        both = {"ours": ours, "harness": harness}
        Path(output).write_text(json.dumps(both), encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
