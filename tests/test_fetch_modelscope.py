"""``fetch --from modelscope`` from a small ModelScope, from which its own client fetches too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from huggingface_hub import constants

from gpt2_lightning.cli import main
from gpt2_lightning.fetch import transfer
from gpt2_lightning.fetch.hubs import PAGE
from tests.command_line import Mistake
from tests.corpus import hub_rows, wiki_rows
from tests.faulty_hub import Faults, faulty_hub
from tests.hub import small_hub
from tests.modelscope_hub import ModelScopeHandler

MODEL = ("fetch", "model", "AI-ModelScope/gpt2", "--to", "ours", "--from", "modelscope")
TEXT = ("fetch", "data", "some/wikitext", "--to", "text", "--from", "modelscope")
WEIGHTS = "model.safetensors"
CLIENT = Path(sys.executable).parent / "modelscope"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when the client was imported
    clock = SimpleNamespace(sleep=lambda seconds: None)  # no time passes between two tries
    monkeypatch.setattr("gpt2_lightning.fetch.transfer.time", clock)


@pytest.fixture
def root(tmp_path: Path, tiny_model: Path) -> Path:
    folder = tmp_path / "hub"
    shutil.copytree(tiny_model, folder / "models/AI-ModelScope/gpt2")
    (folder / "models/AI-ModelScope/gpt2/pytorch_model.bin").write_text("no", encoding="utf-8")
    for subset, seed in (("wikitext-2-v1", 0), ("wikitext-2-raw-v1", 5)):
        for split in ("train", "validation", "test"):
            file = folder / f"datasets/some/wikitext/{subset}/{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = hub_rows(wiki_rows(articles=4, seed=seed))
            Dataset.from_dict({"text": rows}).to_parquet(file)
    return folder


def content(folder: str) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_same_files_as_its_own_client_fetches(root: Path) -> None:
    with small_hub(root, ModelScopeHandler) as (endpoint, _):
        for words in (
            ("--model", "AI-ModelScope/gpt2", "--local_dir", "gpt2"),
            ("--dataset", "some/wikitext", "--local_dir", "wikitext"),
        ):
            done = subprocess.run(
                [CLIENT, "download", *words],
                env=os.environ | {"MODELSCOPE_ENDPOINT": endpoint, "HOME": str(root.parent)},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        main([*MODEL, "--endpoint", endpoint])
        main([*MODEL[:4], "all", *MODEL[5:], "--endpoint", endpoint, "--all"])
        main([*TEXT, "--endpoint", endpoint, "--all"])
    theirs, ours = content("gpt2"), content("all")
    del ours[".fetch.json"]
    assert ours == {name: theirs[name] for name in ours}
    assert {"pytorch_model.bin", WEIGHTS} < ours.keys()
    assert not any(name for name in theirs if name not in ours and not name.startswith("."))
    assert "pytorch_model.bin" not in content("ours")
    theirs, ours = content("wikitext"), content("text")
    assert len([name for name in ours if ours[name] == theirs.get(name)]) == 6
    main(["fetch", "--check", "gpt2"])  # what the tutorial downloads
    main(["fetch", "--check", "wikitext"])


def test_the_endpoint_of_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_hub(root, ModelScopeHandler) as (endpoint, _):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", endpoint)
        main([*TEXT, "--subset", "wikitext-2-v1"])
    screen = capsys.readouterr().out
    assert "Fetched data some/wikitext at master into text: 3 files" in screen
    assert f"as ModelScope ({endpoint}) lists" in screen
    main([*TEXT, "--subset", "wikitext-2-v1"])
    assert "text already exists" in capsys.readouterr().out


def test_a_cut_connection_is_resumed_where_it_ended(root: Path) -> None:
    faults = Faults(cut={WEIGHTS: [20_000], "tokenizer.json": [1_000]})
    with faulty_hub(root, faults, ModelScopeHandler) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint])
    assert faults.ranges[WEIGHTS] == [None, "bytes=20000-"]
    whole = content(str(root / "models/AI-ModelScope/gpt2"))
    for name in (WEIGHTS, "tokenizer.json"):  # of which it sends the whole once more
        assert (Path("ours") / name).read_bytes() == whole[name]


def test_a_damaged_file_is_refused_and_nothing_stays(root: Path, mistake: Mistake) -> None:
    with faulty_hub(root, Faults(damaged={WEIGHTS}), ModelScopeHandler) as (endpoint, _):
        message = mistake(*MODEL, "--endpoint", endpoint)
    assert f"{WEIGHTS} arrived damaged (its sha256 is " in message
    assert sorted(path.name for path in Path().iterdir()) == ["hub"]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(status={"": (401, {})}), "set MODELSCOPE_API_TOKEN"),
        (Faults(status={"": (404, {})}), "has no model of that name (HTTP 404)"),
        (Faults(status={"": (429, {"Retry-After": "60"})}), "asks to wait 60 seconds"),
        (Faults(silent={""}), "timed out after 0.3 seconds"),
    ],
    ids=["401", "404", "429", "silent"],
)
def test_what_modelscope_refuses(
    root: Path, mistake: Mistake, faults: Faults, message: str
) -> None:
    with faulty_hub(root, faults, ModelScopeHandler) as (endpoint, requests):
        patience = ("--timeout", "0.3") if faults.silent else ()
        said = mistake(*MODEL, *patience, "--endpoint", endpoint)
    assert message in said
    assert said.startswith("error: model AI-ModelScope/gpt2: ModelScope (")
    assert len(requests) == (transfer.TRIES if faults.silent else 1)


def test_what_is_not_there(root: Path, mistake: Mistake) -> None:
    with small_hub(root, ModelScopeHandler) as (endpoint, _):
        at = ("--endpoint", endpoint)
        assert "HTTP 404" in mistake(*MODEL[:2], "AI-ModelScope/gpt3", *MODEL[3:], *at)
        assert "Check --revision" in mistake(*MODEL, *at, "--revision", "v2")
        assert "--subset wikitext-2-raw-v1 or" in mistake(*TEXT, *at)
    with small_hub(root) as (endpoint, _):  # the Hub, at that address
        assert "HTTP 404" in mistake(*MODEL, "--endpoint", endpoint)


def test_the_token_is_sent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    faults = Faults()
    with faulty_hub(root, faults, ModelScopeHandler) as (endpoint, _):
        main([*TEXT, "--subset", "wikitext-2-v1", "--endpoint", endpoint])
    assert faults.tokens == {("127.0.0.1", "Bearer ms-secret"): 4}  # not where it sent us on to


def test_a_listing_in_pages(root: Path) -> None:
    folder = root / "datasets/some/wikitext"
    for number in range(PAGE):
        (folder / f"wikitext-2-v1/notes-{number}.md").write_text("note", encoding="utf-8")
    with small_hub(root, ModelScopeHandler) as (endpoint, requests):
        main([*TEXT, "--subset", "wikitext-2-v1", "--endpoint", endpoint])
    assert len([request for request in requests if "/repo/tree" in request]) == 2
    assert sum(name.endswith(".parquet") for name in content("text")) == 3
