"""Model and text by name: from a hub on loopback, then from the cache with no hub at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tests.command_line import CALM, SMALL, curves
from tests.corpus import hub_rows, wiki_rows
from tests.hub import COMMIT, small_hub

PARQUET = "wiki-small-v1/train-00000-of-00001.parquet"
TEXT = ("--data.source=someone/wikitext", "--data.subset=wiki-small-v1")
FIT = ("fit", "--model.pretrained=someone/gpt2", *TEXT, *SMALL, *CALM, "--trainer.max_steps=2")


@pytest.fixture
def hub_folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A hub's content: one model, and one data set of two subsets."""
    root = tmp_path / "hub"
    shutil.copytree(tiny_model, root / "models/someone/gpt2")
    for subset in ("wiki-small-v1", "wiki-other-v1"):
        for seed, split in enumerate(("train", "validation", "test")):
            file = root / f"datasets/someone/wikitext/{subset}/{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = hub_rows(wiki_rows(articles=12 - 4 * (seed > 0), seed=seed))
            Dataset.from_dict({"text": rows}).to_parquet(file)
    configs = "".join(
        f"- config_name: {subset}\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {subset}/{split}-*\n"
            for split in ("train", "validation", "test")
        )
        for subset in ("wiki-small-v1", "wiki-other-v1")
    )
    card = f"---\nconfigs:\n{configs}---\n"
    (root / "datasets/someone/wikitext/README.md").write_text(card, encoding="utf-8")
    return root


def run(*words: str, endpoint: str, offline: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own: the clients read the endpoint when imported."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(Path("hf-home").absolute()),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "gpt2_lightning", *words],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_fit_from_a_hub_and_again_without_one(hub_folder: Path) -> None:
    with small_hub(hub_folder) as (endpoint, requests):
        first = run(*FIT, f"--data.revision={COMMIT}", endpoint=endpoint)
        assert first.returncode == 0, first.stderr
    fetched = [request.removeprefix("GET ") for request in requests if "GET" in request]
    assert f"/someone/gpt2/resolve/{COMMIT}/model.safetensors" in fetched
    assert f"/datasets/someone/wikitext/resolve/{COMMIT}/{PARQUET}" in fetched
    assert not any("wiki-other-v1/train" in path for path in fetched)
    again = run(*FIT, f"--data.revision={COMMIT}", endpoint=endpoint, offline=True)
    assert again.returncode == 0, again.stderr
    runs = [curves(Path(f"lightning_logs/version_{number}")) for number in (0, 1)]
    assert runs[0]["val/loss"] == runs[1]["val/loss"]


def test_what_the_hub_does_not_have(hub_folder: Path) -> None:
    with small_hub(hub_folder) as (endpoint, _):
        for flag, message in (
            ("--model.pretrained=someone/gpt3", "error: --model.pretrained someone/gpt3"),
            ("--model.revision=v7", "error: --model.pretrained someone/gpt2"),
            ("--data.source=someone/else", "error: --data.source someone/else"),
            ("--data.subset=wiki-no", "wiki-small-v1"),
            ("--data.revision=v7", "error: --data.source someone/wikitext"),
        ):
            refused = run(*FIT, flag, endpoint=endpoint)
            assert refused.returncode == 2, refused.stderr
            assert message in refused.stderr.splitlines()[-1]
            assert "Traceback" not in refused.stderr
    assert not Path("lightning_logs").exists()


def test_no_hub_at_the_endpoint(hub_folder: Path) -> None:
    with small_hub(hub_folder) as (endpoint, _):
        pass  # it has gone
    refused = run(*FIT, endpoint=endpoint)
    assert refused.returncode == 2
    assert "HF_ENDPOINT" in refused.stderr.splitlines()[-1]
