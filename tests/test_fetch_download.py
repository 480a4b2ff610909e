"""``fetch`` from a small hub on loopback, whole, cut, damaged, refused and silent."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from gpt2_lightning.cli import main
from gpt2_lightning.data.articles import RAW_SHA256, ROWS
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fetch import transfer
from gpt2_lightning.fetch.check import SplitText, compare_with_wikitext2
from gpt2_lightning.fetch.hubs import repo_ref, safe_path
from tests.command_line import SMALL, Mistake, fit
from tests.corpus import hub_rows, wiki_rows
from tests.faulty_hub import Faults, faulty_hub
from tests.hub import COMMIT, small_hub

MODEL = ("fetch", "model", "openai-community/gpt2", "--to", "gpt2")
TEXT = ("fetch", "data", "Salesforce/wikitext", "--to", "wikitext")
SUBSET = ("--subset", "wikitext-2-v1")
NEEDED = {
    ".fetch.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when the client was imported


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no time pass between two tries; return the seconds that would have been waited."""
    seconds: list[float] = []
    clock = SimpleNamespace(sleep=seconds.append)
    monkeypatch.setattr("gpt2_lightning.fetch.transfer.time", clock)
    return seconds


@pytest.fixture
def root(tmp_path: Path, tiny_model: Path) -> Path:
    """A hub's content: a model with much beside it, and a data set of two subsets."""
    folder = tmp_path / "hub"
    model = folder / "models/openai-community/gpt2"
    shutil.copytree(tiny_model, model)
    for name in ("pytorch_model.bin", "tf_model.h5", "64.tflite", "README.md", "onnx/model.onnx"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("not needed", encoding="utf-8")
    for subset in ("wikitext-2-v1", "wikitext-2-raw-v1"):
        for seed, split in enumerate(("train", "validation", "test")):
            file = folder / f"datasets/Salesforce/wikitext/{subset}/{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = hub_rows(wiki_rows(articles=12 - 4 * (seed > 0), seed=seed))
            Dataset.from_dict({"text": rows}).to_parquet(file)
    (folder / "datasets/Salesforce/wikitext/README.md").write_text("card", encoding="utf-8")
    return folder


def names(folder: str) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()
    }


def left() -> list[str]:
    """Return what stands beside the hub's own folder."""
    return sorted(path.name for path in Path().iterdir() if path.name not in ("hub", "cache"))


@pytest.mark.slow
def test_fetched_from_a_mirror_then_a_fit_without_a_network(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_hub(root) as (endpoint, requests):
        main([*MODEL, "--endpoint", endpoint])
        main([*TEXT, *SUBSET, f"--endpoint={endpoint}/"])
    assert names("gpt2") == NEEDED
    assert names("wikitext") == {".fetch.json"} | {
        f"wikitext-2-v1/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")
    }
    assert not any("onnx" in request or "wikitext-2-raw" in request for request in requests)
    screen = capsys.readouterr().out
    assert f"Fetched model openai-community/gpt2 at {COMMIT} into gpt2: 5 files" in screen
    assert "--model.pretrained gpt2" in screen
    assert "--data.source wikitext --data.subset wikitext-2-v1" in screen
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run = fit(
        "--model.pretrained=gpt2",
        "--data.source=wikitext",
        "--data.subset=wikitext-2-v1",
        "--trainer.max_steps=2",
        *SMALL,
    )
    assert (run / "hf" / WEIGHTS).is_file()


@pytest.mark.slow
def test_a_process_of_its_own_with_the_environments_mirror(root: Path) -> None:
    with small_hub(root) as (endpoint, requests):
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(Path("home").absolute())}
        done = subprocess.run(
            [sys.executable, "-m", "gpt2_lightning", *TEXT, "--subset=wikitext-2-v1"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    # a listing; each of three files, there and where it is sent on to
    assert len([request for request in requests if "Salesforce/wikitext" in request]) == 7
    # for a screen that is no terminal, a line for each file
    assert len([line for line in done.stderr.splitlines() if ".parquet (" in line]) == 3


def test_all_files(root: Path) -> None:
    with small_hub(root) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint, "--all"])
        main([*TEXT, "--endpoint", endpoint, "--all"])
    assert names("gpt2") >= {"onnx/model.onnx", "tf_model.h5", "pytorch_model.bin"}
    assert "README.md" in names("wikitext")
    assert len(names("wikitext")) == 8


def test_a_second_call_does_nothing_and_says_so(
    root: Path, capsys: pytest.CaptureFixture[str], mistake: Mistake
) -> None:
    with small_hub(root) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint])
    before = {path: path.stat().st_mtime_ns for path in Path("gpt2").iterdir()}
    capsys.readouterr()
    main([*MODEL, "--endpoint", endpoint])  # where no hub is any more
    assert "gpt2 already exists, with all its files" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("gpt2").iterdir()} == before
    for flags, other in (
        (("--revision", "v2"), "(revision of the main branch (0123456789ab))"),
        (("--all",), "(fewer files, without --all)"),
        (("--from", "modelscope"), "(model openai-community/gpt2 from hub)"),
    ):
        assert f"it was fetched as something else {other}" in mistake(*MODEL, *flags)
    (Path("gpt2") / WEIGHTS).write_bytes(b"short")
    assert f"since it was fetched, {WEIGHTS} changed or was deleted" in mistake(*MODEL)


def test_without_a_network_by_the_users_own_wish(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids downloads" in mistake(*MODEL)


def test_files_of_others_stay(mistake: Mistake) -> None:
    Path("gpt2").mkdir()
    Path("gpt2/notes.txt").write_text("mine", encoding="utf-8")
    assert "it contains files that fetch did not write. fetch --check" in mistake(*MODEL)
    assert left() == ["gpt2"]
    assert "is a file. Choose another folder" in mistake(*MODEL[:3], "--to", "gpt2/notes.txt/x")


def test_a_cut_connection_is_resumed_where_it_ended(root: Path) -> None:
    faults = Faults(cut={WEIGHTS: [20_000, 7_000]})
    with faulty_hub(root, faults) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint])
    assert faults.ranges[WEIGHTS] == [None, "bytes=20000-", "bytes=27000-"]
    assert (Path("gpt2") / WEIGHTS).read_bytes() == weights_of(root).read_bytes()
    assert left() == ["gpt2"]


def weights_of(root: Path) -> Path:
    return root / "models/openai-community/gpt2" / WEIGHTS


def test_a_stopped_transfer_goes_on_in_the_next_call(root: Path, mistake: Mistake) -> None:
    faults = Faults(cut={WEIGHTS: [20_000, *[0] * transfer.TRIES]})
    with faulty_hub(root, faults) as (endpoint, requests):
        message = mistake(*MODEL, "--endpoint", endpoint)
        assert "model.safetensors is kept up to byte 20,000, where the next try begins" in message
        assert left() == [".gpt2.fetching"]
        assert len(faults.ranges[WEIGHTS]) == 1 + transfer.TRIES
        faults.cut.clear()
        asked = len(requests)
        main([*MODEL, "--endpoint", endpoint])
    assert faults.ranges[WEIGHTS][-1] == "bytes=20000-"
    # a listing, and the one file that was not there: its address, and where that sends on to
    assert len(requests) - asked == 3
    assert (Path("gpt2") / WEIGHTS).read_bytes() == weights_of(root).read_bytes()
    assert left() == ["gpt2"]


def test_a_stopped_transfer_of_another_content_begins_anew(root: Path, mistake: Mistake) -> None:
    faults = Faults(cut={WEIGHTS: [20_000, *[0] * transfer.TRIES]})
    with faulty_hub(root, faults) as (endpoint, _):
        mistake(*MODEL, "--endpoint", endpoint)
        content = bytearray(weights_of(root).read_bytes())
        content[-1] ^= 1
        weights_of(root).write_bytes(content)
        faults.cut.clear()
        main([*MODEL, "--endpoint", endpoint])
    assert faults.ranges[WEIGHTS][-1] is None
    assert (Path("gpt2") / WEIGHTS).read_bytes() == content


def test_a_server_that_ignores_ranges(root: Path) -> None:
    faults = Faults(cut={WEIGHTS: [20_000]}, no_ranges=True)
    with faulty_hub(root, faults) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint])
    assert (Path("gpt2") / WEIGHTS).read_bytes() == weights_of(root).read_bytes()


@pytest.mark.parametrize(("file", "hash"), [(WEIGHTS, "sha256"), ("tokenizer.json", "git hash")])
def test_a_damaged_file_is_refused_and_nothing_stays(
    root: Path, mistake: Mistake, file: str, hash: str
) -> None:
    with faulty_hub(root, Faults(damaged={file})) as (endpoint, _):
        message = mistake(*MODEL, "--endpoint", endpoint)
    assert f"{file} arrived damaged (its {hash} is " in message
    assert left() == []


@pytest.mark.slow
def test_a_silent_server(root: Path, mistake: Mistake) -> None:
    with faulty_hub(root, Faults(silent={""})) as (endpoint, requests):
        message = mistake(*MODEL, "--timeout", "0.3", "--endpoint", endpoint)
        assert len(requests) == transfer.TRIES
    assert "timed out after 0.3 seconds, repeatedly" in message
    assert "--endpoint https://hf-mirror.com" in message
    assert left() == []
    with faulty_hub(root, Faults(silent={"/large/"})) as (endpoint, _):
        message = mistake(*MODEL, "--timeout", "0.3", "--endpoint", endpoint)
    assert "timed out" in message
    assert left() == [".gpt2.fetching"]


@pytest.mark.parametrize(
    ("path", "status", "headers", "message"),
    [
        ("/api/", 404, {"X-Error-Code": "RepoNotFound"}, "has no model of that name (HTTP 404)"),
        ("/api/", 404, {"X-Error-Code": "RevisionNotFound"}, "Check --revision"),
        ("/resolve/", 404, {}, "config.json: the Hub (http://127.0.0.1"),
        ("/api/", 401, {}, "requires a login, or has nothing of that name (HTTP 401)"),
        ("/api/", 403, {"X-Error-Code": "GatedRepo"}, "accept its terms"),
        ("/api/", 429, {}, "limits the rate of requests (HTTP 429). Wait, or sign in"),
        ("/large/", 429, {"Retry-After": "3600"}, "asks to wait 3,600 seconds"),
        ("/api/", 503, {}, "has failed (HTTP 503)"),
        ("/api/", 418, {}, "refused (HTTP 418)"),
    ],
)
def test_what_the_hub_refuses(
    root: Path,
    mistake: Mistake,
    path: str,
    status: int,
    headers: dict[str, str],
    message: str,
) -> None:
    with faulty_hub(root, Faults(status={path: (status, headers)})) as (endpoint, requests):
        said = mistake(*MODEL, "--endpoint", endpoint)
        tries = len([request for request in requests if path in request])
    assert message in said
    assert "  " not in said
    assert said.startswith("error: model openai-community/gpt2: ")
    assert tries == (transfer.TRIES if status in (429, 503) and not headers else 1)
    if status == 401:
        assert "no flag for a token" in said
        assert "HF_TOKEN" in said
    assert not Path("gpt2").exists()


def test_a_passing_fault_is_outlived(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(status={"/large/": (503, {"Retry-After": "7"})})
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        faults.status.clear()

    monkeypatch.setattr("gpt2_lightning.fetch.transfer.time.sleep", wait)
    with faulty_hub(root, faults) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint])
    assert waited == [7]


def test_it_waits_longer_from_try_to_try(mistake: Mistake, waited: list[float]) -> None:
    mistake(*MODEL, "--endpoint", "http://127.0.0.1:9")
    assert waited == [1, 2, 4]
    waited.clear()
    mistake(*MODEL, "--endpoint", "http://127.0.0.1:9", "--timeout", "1.5")
    assert waited == [1, 1.5, 1.5]


def test_no_server(mistake: Mistake) -> None:
    message = mistake(*MODEL, "--endpoint", "http://127.0.0.1:9")
    assert "cannot be reached" in message
    assert "--from modelscope" in message


def test_the_token_goes_to_the_hub_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    faults = Faults()
    with faulty_hub(root, faults) as (endpoint, requests):
        main([*MODEL, "--endpoint", endpoint])
    assert sum("/large/" not in request for request in requests) == 6
    assert faults.tokens == {("127.0.0.1", "Bearer hf_secret"): 6}  # not where it sent us on to


def test_a_disk_that_is_too_small(
    root: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 50_100_000))
    with faulty_hub(root, Faults()) as (endpoint, requests):
        message = mistake(*MODEL, "--endpoint", endpoint)
    needed = sum(
        (root / "models/openai-community/gpt2" / name).stat().st_size
        for name in NEEDED - {".fetch.json"}
    )
    assert f"--to {Path('gpt2').resolve()}: {needed / 1e6:.1f} MB are needed" in message
    assert "50.1 MB are free" in message
    assert len(requests) == 1  # the listing
    assert left() == []


def test_one_fetch_at_a_time(root: Path, mistake: Mistake) -> None:
    Path(".gpt2.fetching").mkdir()
    with small_hub(root) as (endpoint, _), FileLock(".gpt2.fetching/lock"):
        assert "another fetch is writing it" in mistake(*MODEL, "--endpoint", endpoint)


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "C:/x", "a\\..\\x", ""])
def test_a_listed_path_stays_inside(path: str) -> None:
    asked = repo_ref("model", "a/b", "hub", None, None, 1)
    with pytest.raises(UsageError, match="outside the folder"):
        safe_path(path, asked)
    assert safe_path("onnx/model.onnx", asked) == "onnx/model.onnx"


def test_which_subset(root: Path, mistake: Mistake) -> None:
    with small_hub(root) as (endpoint, _):
        message = mistake(*TEXT, "--endpoint", endpoint)
        assert "--subset wikitext-2-raw-v1 or --subset wikitext-2-v1" in message
        message = mistake(*TEXT, "--endpoint", endpoint, "--subset", "wikitext-9")
        assert "It has: wikitext-2-raw-v1, wikitext-2-v1." in message
        shutil.rmtree(root / "datasets/Salesforce/wikitext/wikitext-2-raw-v1")
        main([*TEXT, "--endpoint", endpoint])  # the only one needs no name
        shutil.copytree(root / "datasets/Salesforce/wikitext", root / "models/a/b")
        wrong = mistake("fetch", "model", "a/b", "--to", "x", "--endpoint", endpoint)
    assert "it has no config.json" in wrong
    assert "wikitext-2-v1/train-00000-of-00001.parquet" in names("wikitext")


def test_a_subset_more(root: Path, capsys: pytest.CaptureFixture[str], mistake: Mistake) -> None:
    other = ("--subset", "wikitext-2-raw-v1")
    with small_hub(root) as (endpoint, requests):
        at = ("--endpoint", endpoint)
        main([*TEXT, *SUBSET, *at])
        before = names("wikitext")
        Path("wikitext/wikitext-2-raw-v1").mkdir()
        assert "its wikitext-2-raw-v1 was not fetched with it" in mistake(*TEXT, *other, *at)
        Path("wikitext/wikitext-2-raw-v1").rmdir()
        asked = len(requests)
        main([*TEXT, *other, *at])
        assert f"/api/datasets/Salesforce/wikitext/revision/{COMMIT}" in requests[asked]
        assert not any("wikitext-2-v1" in request for request in requests[asked:])
    assert len(names("wikitext")) == len(before) + 3
    assert left() == ["wikitext"]
    for subset in (SUBSET, other):
        capsys.readouterr()
        main([*TEXT, *subset])
        shown = capsys.readouterr().out
        assert "wikitext already exists, with all its files" in shown
        assert f"--data.subset {subset[1]}" in shown


def test_text_that_is_not_what_its_name_says(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_hub(root) as (endpoint, _):
        main([*TEXT, "--endpoint", endpoint, "--subset", "wikitext-2-raw-v1"])
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith(
        "warning: wikitext-2-raw-v1: NOT the official wikitext-2-raw-v1: train"
    )
    assert "rows of 36,718" in warning


def test_verdicts_on_wikitext() -> None:
    right = {name: SplitText(ROWS[name], RAW_SHA256[name]) for name in ROWS}
    verdict, wrong = compare_with_wikitext2(right, None)  # under whatever name
    assert verdict == "the official WikiText-2, raw, by the SHA-256 of each split"
    assert not wrong
    tokenized = {name: SplitText(ROWS[name], "other") for name in ROWS}
    assert compare_with_wikitext2(tokenized, "wikitext-2-v1")[1] is False
    verdict, wrong = compare_with_wikitext2(tokenized, "wikitext-2-raw-v1")
    assert wrong
    assert verdict is not None
    assert "train has the right 36,718 rows, but its text differs" in verdict
    assert compare_with_wikitext2(tokenized, "else") == (None, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            "fetch: nothing is named. Write: python -m gpt2_lightning fetch model",
        ),
        (("gpt2",), "fetch gpt2: model or data? Write: fetch model gpt2, or: fetch data gpt2"),
        (("model", "a/b"), "--to is missing, the folder to create: --to b, say"),
        (("model", "https://hub.example/a/b", "--to", "x"), "it is no name on the Hub"),
        (("model", "gpt2", "--to", "x", "--from", "modelscope"), "such as AI-ModelScope/gpt2"),
        (
            ("model", "a/b", "--to", "x", "--endpoint", "hub.example"),
            "--endpoint hub.example: must be",
        ),
        (("model", "a/b", "--to", "x", "--subset", "y"), "--subset: a model has no subsets"),
        (("data", "a/b", "--to", "x", "--allow-pickle"), "--allow_pickle: data is never"),
        (("model", "a/b", "--to", "x", "--timeout", "0"), "--timeout 0.0: must be > 0, in seconds"),
        (("model", "a/b", "--to", "x", "--token", "t"), "--token: there is no such flag"),
        (("--check", "x", "--to", "y"), "--check DIR: it downloads nothing"),
    ],
)
def test_mistakes_in_the_words(mistake: Mistake, words: tuple[str, ...], message: str) -> None:
    assert message in mistake("fetch", *words)


Pickled = Callable[..., Path]


@pytest.fixture
def pickled(root: Path) -> Pickled:
    """Put weights as pytorch_model.bin in the place of the safetensors; return the file."""

    def put(weights: object, **settings: object) -> Path:
        folder = root / "models/openai-community/gpt2"
        (folder / WEIGHTS).unlink(missing_ok=True)
        torch.save(weights, folder / "pytorch_model.bin")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
        return folder / "pytorch_model.bin"

    return put


def test_a_pickle_only_where_it_is_allowed(
    root: Path, pickled: Pickled, tiny_model: Path, mistake: Mistake
) -> None:
    state = GPT2LMHeadModel.from_pretrained(tiny_model).state_dict()
    # as in the oldest files: names without a prefix, no head, and the causal mask among them
    old = {name.removeprefix("transformer."): value for name, value in state.items()}
    del old["lm_head.weight"]
    pickled(old | {"h.0.attn.bias": torch.ones(1, 1, 64, 64).tril()})
    with small_hub(root) as (endpoint, requests):
        message = mistake(*MODEL, "--endpoint", endpoint)
        assert "its weights exist only as pytorch_model.bin, a pickle" in message
        assert len(requests) == 1
        main([*MODEL, "--endpoint", endpoint, "--allow-pickle"])
    assert names("gpt2") == NEEDED
    assert load_file(f"gpt2/{WEIGHTS}").keys() == load_file(tiny_model / WEIGHTS).keys()
    model = GPT2LMHeadModel.from_pretrained("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_pickle_whose_head_is_not_tied(root: Path, pickled: Pickled, mistake: Mistake) -> None:
    file = root / "models/openai-community/gpt2"
    state = dict(GPT2LMHeadModel.from_pretrained(file).state_dict())
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    pickled(state)
    with small_hub(root) as (endpoint, _):
        message = mistake(*MODEL, "--endpoint", endpoint, "--allow_pickle")
        assert "config.json ties the head to the embedding, and they differ" in message
        pickled(state, tie_word_embeddings=False)
        main([*MODEL, "--endpoint", endpoint, "--allow_pickle"])
    model = GPT2LMHeadModel.from_pretrained("gpt2")
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])
    assert torch.equal(model.transformer.wte.weight, state["transformer.wte.weight"])


class Evil:
    """What a pickle can do that holds more than tensors."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_pickle_with_code_in_it_runs_none(root: Path, pickled: Pickled, mistake: Mistake) -> None:
    pickled({"transformer.wte.weight": Evil()})
    with small_hub(root) as (endpoint, _):
        message = mistake(*MODEL, "--endpoint", endpoint, "--allow_pickle")
        assert "pytorch_model.bin: it cannot be read as weights (it holds more than" in message
        (root / "models/openai-community/gpt2/pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
        assert "more than tensors" in mistake(*MODEL, "--endpoint", endpoint, "--allow_pickle")
    assert left() == []  # nor did it run


def test_a_pickle_in_half_precision_and_in_shards(root: Path, pickled: Pickled) -> None:
    folder = root / "models/openai-community/gpt2"
    state = dict(GPT2LMHeadModel.from_pretrained(folder).half().state_dict())
    file = pickled({})
    file.unlink()
    weight_map: dict[str, str] = {}
    for number, keys in enumerate((list(state)[:7], list(state)[7:]), start=1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({key: state[key] for key in keys}, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    with small_hub(root) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint, "--allow_pickle"])
    assert names("gpt2") == NEEDED
    written = load_file(f"gpt2/{WEIGHTS}")
    assert all(torch.equal(value, state[name]) for name, value in written.items())
    assert written["transformer.wte.weight"].dtype == torch.float16


def test_a_pickle_that_does_not_fit(root: Path, pickled: Pickled, mistake: Mistake) -> None:
    state = dict(
        GPT2LMHeadModel.from_pretrained(root / "models/openai-community/gpt2").state_dict()
    )
    with small_hub(root) as (endpoint, _):
        for wrong in ({"transformer.wpe.weight": torch.zeros(2, 32)}, {"x": torch.zeros(1)}):
            pickled(wrong if "x" in wrong else state | wrong)
            message = mistake(*MODEL, "--endpoint", endpoint, "--allow_pickle")
            assert "pytorch_model.bin: it does not fit config.json" in message
    assert left() == []


def test_sharded_weights(root: Path) -> None:
    folder = root / "models/openai-community/gpt2"
    model = GPT2LMHeadModel.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").is_file()
    with small_hub(root) as (endpoint, _):
        main([*MODEL, "--endpoint", endpoint])
    shards = {file.name for file in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    assert names("gpt2") == NEEDED - {WEIGHTS} | shards | {"model.safetensors.index.json"}
