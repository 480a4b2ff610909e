"""Model and text by name: from a hub on loopback, then from the cache with no hub at all."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tests.command_line import CALM, SMALL, curves
from tests.corpus import hub_rows, wiki_rows
from tests.hub import COMMIT, small_hub
from tests.test_readme import ROOT, TEXTS, commands

pytestmark = pytest.mark.slow

PARQUET = "wikitext-2-v1/train-00000-of-00001.parquet"
TEXT = ("--data.source=Salesforce/wikitext", "--data.subset=wikitext-2-v1")
FIT = (
    "fit",
    "--model.pretrained=openai-community/gpt2",
    *TEXT,
    *SMALL,
    *CALM,
    "--trainer.max_steps=2",
)


@pytest.fixture
def hub_folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A hub's content: one model, and one data set of two subsets."""
    root = tmp_path / "hub"
    shutil.copytree(tiny_model, root / "models/openai-community/gpt2")
    for name in ("vocab.json", "merges.txt"):  # the hub's has them beside tokenizer.json
        (root / "models/openai-community/gpt2" / name).write_text("{}", encoding="utf-8")
    for subset in ("wikitext-2-v1", "wikitext-2-raw-v1"):
        for seed, split in enumerate(("train", "validation", "test")):
            file = root / f"datasets/Salesforce/wikitext/{subset}/{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = hub_rows(wiki_rows(articles=12 - 4 * (seed > 0), seed=seed))
            Dataset.from_dict({"text": rows}).to_parquet(file)
    configs = "".join(
        f"- config_name: {subset}\n  data_files:\n"
        + "".join(
            f"  - split: {split}\n    path: {subset}/{split}-*\n"
            for split in ("train", "validation", "test")
        )
        for subset in ("wikitext-2-v1", "wikitext-2-raw-v1")
    )
    card = f"---\nconfigs:\n{configs}---\n"
    (root / "datasets/Salesforce/wikitext/README.md").write_text(card, encoding="utf-8")
    return root


# lines of our program in one process, each followed by its exit code
LINES = """
import sys
from types import SimpleNamespace
from huggingface_hub.utils import _http
from gpt2_lightning.cli import main
_http.time = SimpleNamespace(sleep=lambda seconds: None)  # its waits between two tries
for line in sys.stdin:
    try:
        main(line.split())
    except SystemExit as ended:
        print("exit code", ended.code, file=sys.stderr)
"""


def run(
    *words: str, endpoint: str, offline: bool = False, lines: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run our program in a process of its own: the clients read the endpoint when imported.

    Args:
        words: After the program's name.
        endpoint: Of the small hub.
        offline: Whether the Hub's client is to stay off the network.
        lines: In place of the words, several lines of them for one process.
    """
    command = ["-m", "gpt2_lightning", *words] if lines is None else ["-c", LINES]
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(Path("hf-home").absolute()),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command],
        input=lines,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refusals(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Return the message of each line of a process, all of which are refused."""
    assert done.returncode == 0, done.stderr
    *refused, rest = done.stderr.split("exit code 2\n")
    assert not rest
    assert "Traceback" not in done.stderr
    return [said.splitlines()[-1] for said in refused]


def test_fit_from_a_hub_and_again_without_one(hub_folder: Path) -> None:
    with small_hub(hub_folder) as (endpoint, requests):
        first = run(*FIT, f"--data.revision={COMMIT}", endpoint=endpoint)
        assert first.returncode == 0, first.stderr
    fetched = [request.removeprefix("GET ") for request in requests if "GET" in request]
    # where a large file's address sends the client on to
    assert "/large/models/openai-community/gpt2/model.safetensors" in fetched
    assert f"/large/datasets/Salesforce/wikitext/{PARQUET}" in fetched
    assert f"HEAD /datasets/Salesforce/wikitext/resolve/{COMMIT}/{PARQUET}" in requests
    assert not any("wikitext-2-raw-v1/train" in path for path in fetched)
    again = run(*FIT, f"--data.revision={COMMIT}", endpoint=endpoint, offline=True)
    assert again.returncode == 0, again.stderr
    runs = [curves(Path(f"lightning_logs/version_{number}")) for number in (0, 1)]
    assert runs[0]["val/loss"] == runs[1]["val/loss"]


def test_what_the_hub_does_not_have(hub_folder: Path) -> None:
    messages = {
        "--model.pretrained=openai-community/gpt3": "--model.pretrained openai-community/gpt3",
        "--model.revision=v7": "--model.pretrained openai-community/gpt2",
        "--data.source=Salesforce/else": "--data.source Salesforce/else",
        "--data.subset=wikitext-9": "wikitext-2-v1",
        "--data.revision=v7": "--data.source Salesforce/wikitext",
    }
    with small_hub(hub_folder) as (endpoint, _):
        lines = "".join(" ".join((*FIT, flag)) + "\n" for flag in messages)
        done = run(endpoint=endpoint, lines=lines)
    for said, message in zip(refusals(done), messages.values(), strict=True):
        assert said.startswith("error: ")
        assert message in said
    assert not Path("lightning_logs").exists()


def test_no_hub_at_the_endpoint(hub_folder: Path, tiny_model: Path) -> None:
    with small_hub(hub_folder) as (endpoint, _):
        pass  # it has gone
    local = f"--model.pretrained={tiny_model}"
    done = run(endpoint=endpoint, lines="\n".join((" ".join(FIT), " ".join((*FIT, local)))))
    names = ("--model.pretrained", "--data.source")
    for message, name in zip(refusals(done), names, strict=True):
        assert message.startswith(f"error: {name} ")
        assert f"{endpoint} cannot be reached" in message
        assert "HF_ENDPOINT names a mirror" in message


def test_the_tutorials_steps_as_its_page_has_them(hub_folder: Path) -> None:
    lines = commands(TEXTS[ROOT / "docs/tutorial.md"])
    steps = [shlex.split(line)[3:] for line in lines if "python -m gpt2" in line]
    (fit,) = [words for words in steps if words[0] == "fit" and "configs/tutorial.yaml" in words]
    fetches = [words for words in steps if words[:2] in (["fetch", "model"], ["fetch", "data"])]
    here = [words for words in fetches if not {"--endpoint", "--from"} & set(words)]
    assert {words[1] for words in here} == {"model", "data"}
    with small_hub(hub_folder) as (endpoint, _):
        done = run(endpoint=endpoint, lines="".join(f"{shlex.join(words)}\n" for words in here))
    assert done.returncode == 0, done.stderr
    assert "exit code" not in done.stderr, done.stderr
    cut = ("--data.block_size=32", "--trainer.max_steps=2", "--samples.enabled=false", *CALM)
    words = [word.replace("configs/", f"{ROOT}/configs/") for word in fit]
    done = run(*words, *cut, endpoint=endpoint, offline=True)
    assert done.returncode == 0, done.stderr
    assert "not comparable with published figures" in " ".join(done.stdout.split())
