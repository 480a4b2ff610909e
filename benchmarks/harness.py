"""lm-evaluation-harness itself beside `evaluate --protocol articles`, on the same articles.

    pip install -c constraints.txt -e ".[harness]"
    python -m benchmarks.harness --model gpt2 --source wikitext --subset wikitext-2-raw-v1
    python -m benchmarks.harness --model gpt2 --articles 10 --served true

The harness' own ``wikitext`` task is taken, pointed at the articles as a local file. With
``--served`` it asks a server of ours, by its ``local-completions`` model, whose windows are two
tokens shorter than ``max_length``; `evaluate` takes the same.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from jsonargparse import auto_cli

FIGURES = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def by_harness(language_model: Any, articles: list[str]) -> dict[str, float]:
    """Return the harness' figures, and the seconds it took."""
    from lm_eval import simple_evaluate
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
        start = time.perf_counter()
        found = simple_evaluate(model=language_model, tasks=[task], bootstrap_iters=0)
        seconds = time.perf_counter() - start
    results = cast(dict[str, Any], found)["results"]["wikitext"]
    return {figure: results[f"{figure},none"] for figure in FIGURES} | {"seconds": seconds}


def on_its_own(model: str, articles: list[str], batch_size: int) -> dict[str, float]:
    """Return the figures of the harness' own loop over a model."""
    from lm_eval.models.huggingface import HFLM

    language_model = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=batch_size)
    return by_harness(language_model, articles)


def from_a_server(model: str, articles: list[str], max_length: int) -> dict[str, float]:
    """Return the figures of the harness as it asks a server of ours."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from benchmarks.serve import Server

    with Server(model, "--device=cpu", "--dtype=fp32") as server:
        language_model = LocalCompletionsAPI(
            base_url=f"{server.url}/v1/completions",
            model=Path(model).name,
            tokenizer=model,
            tokenizer_backend="huggingface",
            max_length=max_length,
            num_concurrent=4,
        )
        return by_harness(language_model, articles)


def by_evaluate(
    model: str,
    source: str,
    subset: str | None,
    batch_size: int,
    *,
    articles: int | None,
    context: int | None,
) -> tuple[dict[str, float], list[str]]:
    """Return our figures, the seconds they took, and the articles, or the first of them."""
    from gpt2_lightning.data.datamodule import WikiTextDataModule
    from gpt2_lightning.evaluate.evaluation import evaluate, rows_of
    from gpt2_lightning.evaluate.protocol import Protocol
    from gpt2_lightning.generate.text_model import load_model
    from gpt2_lightning.model.gpt2 import place

    loaded = load_model(model)
    place(loaded.model, "cpu", "fp32")
    data = WikiTextDataModule(source=source, subset=subset)
    texts: list[str] = []
    for row in rows_of(data, "test"):
        if row.begins:
            texts.append("")
        texts[-1] += row.text
    texts = texts[:articles]
    with tempfile.TemporaryDirectory() as folder:
        if articles is not None:
            (Path(folder) / "wiki.test.raw").write_text("".join(texts), encoding="utf-8")
            data = WikiTextDataModule(source=folder)
        card, _, _ = evaluate(
            loaded, model, data, "test", Protocol("articles", context), batch_size=batch_size
        )
    return {
        **{figure: cast(float, getattr(card, figure)) for figure in FIGURES},
        "seconds": card.seconds,
    }, texts


def main(
    model: str,
    source: str = "Salesforce/wikitext",
    subset: str | None = "wikitext-2-raw-v1",
    batch_size: int = 4,
    articles: int | None = None,
    served: bool = False,
    output: str | None = None,
) -> None:
    """Print both sides' figures and their ratios.

    Args:
        model: Folder in Hugging Face format, or Hub id.
        source: As ``--data.source``.
        subset: As ``--data.subset``.
        batch_size: Windows at a time, on both sides.
        articles: Only so many, from the first on.
        served: Let the harness ask a server of ours.
        output: Write the figures to this file, as JSON.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoConfig

    positions = int(AutoConfig.from_pretrained(model).max_position_embeddings)
    context = positions - 2 if served else None
    ours, texts = by_evaluate(model, source, subset, batch_size, articles=articles, context=context)
    harness = (
        from_a_server(model, texts, positions) if served else on_its_own(model, texts, batch_size)
    )
    asked = "asking a server" if served else "on its own"
    print(f"{len(texts)} articles of {source} {subset or ''}, {model}, CPU, fp32; lm-eval {asked}")
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
