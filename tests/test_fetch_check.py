"""``fetch --check`` on folders that were obtained by all sorts of means."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from gpt2_lightning.cli import main
from gpt2_lightning.fetch import check as official_text
from gpt2_lightning.fetch.check import check_folder, compare_with_wikitext2, read_split
from gpt2_lightning.fetch.transfer import git_sha1_of, sha256_of
from gpt2_lightning.pretrained import check_weights
from tests.command_line import SMALL, Mistake, fit
from tests.corpus import hub_rows, wiki_rows
from tests.hub import COMMIT

WEIGHTS = "model.safetensors"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707\nsize 548105171\n"
)
Check = Callable[[str], tuple[str, str]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Check a folder that can be used; return what stands on the screen, and the warnings."""

    def run(folder: str) -> tuple[str, str]:
        capsys.readouterr()
        main(["fetch", "--check", folder])
        shown = capsys.readouterr()
        return shown.out, shown.err

    return run


@pytest.fixture
def model(tiny_model: Path) -> Path:
    """The tutorial's ./gpt2: all that a repository holds."""
    folder = Path("gpt2").absolute()
    shutil.copytree(tiny_model, folder)
    for name in ("pytorch_model.bin", "flax_model.msgpack", "README.md", "configuration.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def write_subset(folder: Path, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for number, split in enumerate(("train", "validation", "test")):
        rows = hub_rows(wiki_rows(articles=4, seed=seed + number))
        Dataset.from_dict({"text": rows}).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def in_the_cache(folder: Path, cached: Path) -> Path:
    """Put a folder's files into the Hub's cache layout; return the snapshot."""
    snapshot = cached / "snapshots" / COMMIT
    (cached / "blobs").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    for file in folder.rglob("*"):
        if file.is_file():
            large = file.suffix in (".safetensors", ".parquet")
            blob = cached / "blobs" / (sha256_of(file) if large else git_sha1_of(file))
            shutil.copy(file, blob)
            link = snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_the_tutorials_layout(model: Path, check: Check) -> None:
    write_subset(Path("wikitext/wikitext-2-v1"))
    write_subset(Path("wikitext/other"), seed=7)
    shown, _ = check("gpt2")
    assert shown.splitlines()[0] == "gpt2: a model, complete."
    assert "gpt2, 37,120 parameters, 64 positions" in shown
    assert "300 tokens" in shown
    assert shown.splitlines()[-1] == "  --model.pretrained gpt2"
    shown, warnings = check("wikitext")
    assert "  other: train 24 rows, validation 24 rows, test 24 rows" in shown.splitlines()
    assert shown.splitlines()[-2:] == [
        "  --data.source wikitext --data.subset other",
        "  --data.source wikitext --data.subset wikitext-2-v1",
    ]
    assert "NOT the official wikitext-2-v1: train has 24 rows of 36,718" in warnings
    shown, _ = check("wikitext/other")
    assert shown.splitlines()[-1] == "  --data.source wikitext/other"


def test_the_hubs_cache(model: Path, check: Check, mistake: Mistake) -> None:
    write_subset(Path("wikitext/other"))
    for cached, source in (("models--org--gpt2", model), ("datasets--org--text", Path("wikitext"))):
        in_the_cache(source, Path("cache") / cached)
    snapshot = f"cache/models--org--gpt2/snapshots/{COMMIT}"
    for name in ("cache/models--org--gpt2", snapshot):
        shown, _ = check(name)
        assert shown.splitlines()[-1] == f"  --model.pretrained {snapshot}"
        assert "hashes as when downloaded" in shown
    shown, _ = check("cache/datasets--org--text")
    assert "hashes as when downloaded" in shown
    assert shown.splitlines()[-1] == (
        f"  --data.source cache/datasets--org--text/snapshots/{COMMIT} --data.subset other"
    )
    blob = (Path(snapshot) / WEIGHTS).resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1  # the header is whole, a weight is another
    blob.write_bytes(content)
    assert f"{WEIGHTS} is damaged or was changed" in mistake("fetch", "--check", snapshot)
    shutil.copytree(snapshot, "links/x", symlinks=True)
    message = mistake("fetch", "--check", "links")
    assert "which does not exist: only the links of a cache were copied" in message
    assert "cp -rL" in message


def test_the_hubs_cache_of_several(model: Path, mistake: Mistake) -> None:
    for name in ("a", "b"):
        in_the_cache(model, Path(f"cache/models--org--{name}"))
    message = mistake("fetch", "--check", "cache")
    assert "it contains several models" in message
    assert f"--check cache/models--org--b/snapshots/{COMMIT}" in message


def test_a_missing_tokenizer(model: Path, mistake: Mistake) -> None:
    (model / "tokenizer.json").unlink()
    message = mistake("fetch", "--check", "gpt2")
    assert "the tokenizer is missing: there is no tokenizer.json" in message
    assert "--data.tokenizer openai-community/gpt2" in message


def test_truncated_weights(model: Path, mistake: Mistake) -> None:
    content = (model / WEIGHTS).read_bytes()
    for kept in (len(content) - 5_000, 100):
        (model / WEIGHTS).write_bytes(content[:kept])
        message = mistake("fetch", "--check", "gpt2")
        assert f"{WEIGHTS} is " in message
        assert "python -m gpt2_lightning fetch model" in message
        if kept > 100:
            assert f"cut short: {kept:,} of {len(content):,} bytes" in message


def test_pointers_instead_of_content(model: Path, mistake: Mistake) -> None:
    (model / WEIGHTS).write_text(POINTER, encoding="utf-8")
    message = mistake("fetch", "--check", "gpt2")
    assert f"{WEIGHTS} is a pointer of git LFS instead of content" in message
    write_subset(Path("text/other"))
    for file in Path("text/other").iterdir():
        file.write_text(POINTER, encoding="utf-8")
    message = mistake("fetch", "--check", "text")
    assert "validation-00000-of-00001.parquet are pointers of git LFS" in message
    assert "git lfs pull" in message


def test_the_original_archive(
    wiki_folder: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = {
        split: sha256_of(wiki_folder / f"wiki.{name}.raw")
        for split, name in (("train", "train"), ("validation", "valid"), ("test", "test"))
    }
    monkeypatch.setattr(official_text, "RAW_SHA256", official)
    shown, warnings = check(str(wiki_folder))
    assert "the official WikiText-2, raw, by the SHA-256 of each split" in shown
    assert shown.splitlines()[-1] == f"  --data.source {wiki_folder}"
    assert not warnings
    wiki_folder.rename("zipped")
    Path("around").mkdir()
    Path("zipped").rename("around/wikitext-2-raw")  # as it unpacks
    shown, _ = check("around")
    assert shown.splitlines()[-1] == "  --data.source around --data.subset wikitext-2-raw"
    (Path("around") / "wikitext-2-raw" / "wiki.train.raw").unlink()
    shown, warnings = check("around")
    assert "complete" not in shown
    assert "there is no train split. It can be used to evaluate, not to train" in warnings


def test_rows_of_the_hub_are_the_original_text(wiki_folder: Path) -> None:
    """Blank rows restored, the Hub's copy has the hash of the archive's file."""
    from gpt2_lightning.data.files import open_path

    lines = (wiki_folder / "wiki.test.raw").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("hub").mkdir()
    Dataset.from_dict({"text": hub_rows(lines)}).to_parquet("hub/test-00000-of-00001.parquet")
    split = read_split(open_path(Path("hub"), None, "text")["test"])
    assert split.rows == len(lines)
    assert split.sha256 == sha256_of(wiki_folder / "wiki.test.raw")
    assert compare_with_wikitext2({"test": split}, "wikitext-2-raw-v1")[
        1
    ]  # made-up text under the name of another


def test_another_folder_around_it(model: Path, check: Check) -> None:
    Path("from a friend").mkdir()
    model.rename(Path("from a friend/gpt2"))
    shown, _ = check("from a friend")
    assert shown.splitlines()[-1] == "  --model.pretrained 'from a friend/gpt2'"


def test_an_archive_is_to_be_unpacked(model: Path, mistake: Mistake) -> None:
    with zipfile.ZipFile("gpt2.zip", "w") as archive:
        archive.write(model / "config.json", "gpt2/config.json")
    message = mistake("fetch", "--check", "gpt2.zip")
    assert "Unpack it first: python -m zipfile -e gpt2.zip gpt2" in message


def test_what_the_hubs_client_wrote_down(model: Path, check: Check, mistake: Mistake) -> None:
    """A download into a folder leaves a note of each file's hash below .cache."""
    notes = model / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    etag = sha256_of(model / WEIGHTS)
    (notes / f"{WEIGHTS}.metadata").write_text(f"{COMMIT}\n{etag}\n1.0\n", encoding="utf-8")
    assert "hashes as when downloaded" in check("gpt2")[0]
    (notes / f"{WEIGHTS}.metadata").write_text(f"{COMMIT}\n{'0' * 64}\n1.0\n", encoding="utf-8")
    assert "is damaged or was changed" in mistake("fetch", "--check", "gpt2")


def test_shards_of_weights(model: Path, check: Check, mistake: Mistake) -> None:
    loaded = GPT2LMHeadModel.from_pretrained(model)
    (model / WEIGHTS).unlink()
    loaded.save_pretrained(model, max_shard_size="60KB")
    shards = sorted(model.glob("model-*.safetensors"))
    assert f"{len(shards)} files" in check("gpt2")[0]
    shards[1].unlink()
    assert f"{shards[1].name} is missing" in mistake("fetch", "--check", "gpt2")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda it: (it / "config.json").unlink(), "config.json is missing"),
        (lambda it: (it / "config.json").write_text("<html>"), "a page of a web site was saved"),
        (lambda it: (it / "config.json").write_text("{}"), "describes no causal language model"),
        (lambda it: (it / WEIGHTS).unlink(), "only as pytorch_model.bin, a pickle"),
        (lambda it: (it / WEIGHTS).write_text("<html>"), "model.safetensors is damaged"),
        (lambda it: (it / "tokenizer.json").write_text("{}"), "no tokenizer was found there"),
    ],
    ids=["no config", "a page", "empty config", "pickle", "page as weights", "empty tokenizer"],
)
def test_what_cannot_be_used(
    model: Path, mistake: Mistake, damage: Callable[[Path], None], message: str
) -> None:
    damage(model)
    assert message in mistake("fetch", "--check", "gpt2")


def test_parts_of_different_models(model: Path, mistake: Mistake) -> None:
    config = (model / "config.json").read_text(encoding="utf-8")
    for old, new, message in (
        ('"n_layer": 2', '"n_layer": 3', "the weights lack transformer.h.2"),
        ('"vocab_size": 300', '"vocab_size": 200', "have another shape of transformer.wte.weight"),
    ):
        assert old in config
        (model / "config.json").write_text(config.replace(old, new), encoding="utf-8")
        assert message in mistake("fetch", "--check", "gpt2")


def test_a_missing_or_damaged_shard_of_data(mistake: Mistake) -> None:
    write_subset(Path("text"))
    whole = Path("text/train-00000-of-00001.parquet")
    content = whole.read_bytes()
    whole.rename("text/train-00000-of-00002.parquet")
    assert "Missing: train-00001-of-00002.parquet" in mistake("fetch", "--check", "text")
    Path("text/train-00000-of-00002.parquet").unlink()
    whole.write_bytes(content[:-100])
    assert "may be damaged or cut short" in mistake("fetch", "--check", "text")


def test_nothing_of_the_kind(mistake: Mistake) -> None:
    assert "there is no such folder" in mistake("fetch", "--check", "nowhere")
    Path("empty/inner").mkdir(parents=True)
    message = mistake("fetch", "--check", "empty")
    assert "neither a model" in message
    assert "It holds: inner." in message
    Path("book.txt").write_text("text", encoding="utf-8")
    assert "--data.source book.txt" in mistake("fetch", "--check", "book.txt")


def test_a_run_folder_has_its_model_inside(model: Path) -> None:
    run = Path("lightning_logs/version_0")
    run.mkdir(parents=True)
    (run / "samples.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    shutil.copytree(model, run / "hf")
    assert check_folder(str(run)).flags == [f"--model.pretrained {run / 'hf'}"]


@pytest.mark.slow
def test_another_models_tokenizer(
    model: Path, check: Check, mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2's embedding beside a tokenizer of 300 tokens: not complete, whoever looks."""
    for vocabulary, end, said in (
        (50257, 50256, True),  # GPT-2's weights
        (384, 0, False),  # rounded up, as people do for speed
        (512, 299, False),  # made for this tokenizer: the end-of-text is the same
    ):
        config = GPT2Config.from_pretrained(model, vocab_size=vocabulary, eos_token_id=end)
        GPT2LMHeadModel(config).save_pretrained(model)
        shown, warnings = check("gpt2")
        looks = f"the tokenizer has 300 tokens and the model {vocabulary:,}"
        assert (looks in warnings) is said
        assert ("gpt2: a model, complete." in shown) is not said
        main(["generate", "--model=gpt2", "--prompt=a", "--max_new_tokens=1"])
        assert (looks in capsys.readouterr().err) is said
        fit("--model.pretrained=gpt2", "--data.source=builtin", *SMALL, "--trainer.max_steps=1")
        assert (looks in capsys.readouterr().err) is said


def test_weights_that_are_stored_under_another_name_are_whole(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as tensors:
        assert "embed_out.weight" in tensors.keys()  # noqa: SIM118 # no dict
    assert dict(check_weights(tmp_path, "--model x").named_parameters())["lm_head.weight"].numel()


def test_weights_that_are_merged_when_they_are_loaded_are_whole(
    model: Path, check: Check, mistake: Mistake
) -> None:
    config = MixtralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=64,
        eos_token_id=GPT2Config.from_pretrained(model).eos_token_id,
    )
    MixtralForCausalLM(config).save_pretrained(model)
    with safe_open(model / "model.safetensors", framework="pt") as tensors:
        names = list(tensors.keys())
    assert any("experts.1.w3" in name for name in names)  # one by one
    assert "type        mixtral" in check(str(model))[0]
    main(["generate", f"--model={model}", "--prompt=a", "--max_new_tokens=1"])
    (model / "model.safetensors").unlink()
    save_file({name: torch.zeros(2, 2) for name in names[:1]}, model / "model.safetensors")
    assert "the weights lack model." in mistake("fetch", f"--check={model}")
