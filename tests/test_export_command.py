"""export: the model itself, for programs that know nothing of ours; never half, nor over files."""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from gpt2_lightning.checkpoint import read_checkpoint, read_sharded
from gpt2_lightning.cli import main
from gpt2_lightning.export import hf_folder
from gpt2_lightning.generate.text_model import load_checkpoint
from gpt2_lightning.run_folder import Run, find_checkpoint, run_of
from gpt2_lightning.storage import whole_folder
from tests.command_line import Mistake, fine_tuning, fit, run_forked
from tests.corpus import wiki_rows
from tests.hub import TOKEN, small_hub
from tests.killed_exports import print_outcomes
from tests.test_fit_distributed import TWO

QUICK = (
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--model.learning_rate=3e-3",
    "--samples.enabled=false",
)
IDS = torch.randint(0, 300, (4, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """A run of four steps in a folder of its own, on a text that lies somewhere private."""
    folder = tmp_path_factory.mktemp("home-of-alice")
    text = folder / "private" / "river.txt"
    text.parent.mkdir()
    text.write_text("".join(wiki_rows(articles=30)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield fit(*fine_tuning(text, tiny_model), *QUICK).absolute()


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval()(IDS).logits
    return found


def of(folder: Path | str) -> Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder))


def best(run: Path) -> Path:
    (file,) = (run / "checkpoints").glob("best-*.ckpt")
    return file


def export(model: Path | str, *words: str, to: str = "out") -> Path:
    main(["export", f"--model={model}", f"--to={to}", *words])
    return Path(to)


# --- the same model -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "last", "checkpoint", "hf"])
def test_logits_are_the_checkpoints(run: Path, what: str) -> None:
    model, words = {
        "run": (run, ()),
        "last": (run, ("--which=last",)),
        "checkpoint": (best(run), ()),
        "hf": (run / "hf", ()),
    }[what]
    source = run / "checkpoints/last.ckpt" if what == "last" else best(run)
    assert torch.equal(of(export(model, *words)), logits(load_checkpoint(source).model))


@pytest.mark.slow
def test_best_and_last_are_two_models(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    last = moved / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    state["state_dict"]["model.transformer.ln_f.bias"] += 1
    torch.save(state, last)
    by = {which: of(export(moved, f"--which={which}", to=which)) for which in ("best", "last")}
    assert torch.equal(by["best"], logits(load_checkpoint(best(moved)).model))
    assert not torch.equal(by["best"], by["last"])


def test_of_several_kept_the_best_is_taken(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    state = torch.load(best(moved), weights_only=True)
    state["state_dict"]["model.transformer.ln_f.bias"] += 1
    torch.save(state, moved / "checkpoints/best-step9-val_loss9.ckpt")  # the newest
    assert torch.equal(of(export(moved)), of(run / "hf"))


def test_a_checkpoint_is_read_whole_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, opened = [], []
    check, load = zipfile.ZipFile.testzip, torch.load  # the one reads every byte for its checksum

    def checked(archive: zipfile.ZipFile) -> str | None:
        whole.append(Path(str(archive.filename)).name)
        return check(archive)

    def loaded(file: Any, **options: Any) -> Any:
        opened.append(Path(file).name)
        return load(file, **options)

    monkeypatch.setattr(zipfile.ZipFile, "testzip", checked)
    monkeypatch.setattr(torch, "load", loaded)
    chosen = best(run).name
    export(run)
    assert whole == [chosen]
    assert opened == ["last.ckpt", chosen, chosen]  # which is the best, its notes, its weights
    whole.clear()
    opened.clear()
    assert Run(run).newer_than_hf() is None
    assert (whole, opened) == ([], ["last.ckpt", chosen])
    export(run / "checkpoints" / "last.ckpt", to="last")
    assert whole == ["last.ckpt"]


@pytest.mark.slow
def test_from_a_run_of_two_processes(run: Path, wiki_folder: Path, tiny_model: Path) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *QUICK, *TWO)
    done = run_forked("fit", *words, processes=2)
    assert done.returncode == 0, done.stderr
    ddp = Path("lightning_logs/version_0")
    assert torch.equal(of(export(ddp)), logits(load_checkpoint(best(ddp)).model))
    assert not torch.equal(of("out"), of(tiny_model))
    assert "| processes | 2 |" in Path("out/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_from_a_compiled_run(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = torch.compile
    # the graph is traced for real, and run without waiting for a C++ compiler
    monkeypatch.setattr(torch, "compile", lambda it: compile(it, backend="aot_eager"))
    compiled = fit(*fine_tuning(wiki_folder, tiny_model), *QUICK, "--model.compile=true")
    assert torch.equal(of(export(compiled)), logits(load_checkpoint(best(compiled)).model))
    weights = read_checkpoint(best(compiled))["state_dict"]
    written = GPT2LMHeadModel.from_pretrained("out").state_dict()
    assert {f"model.{name}" for name in written} == set(weights)
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in written.items())


def _save_shards(rank: int, checkpoint: Path, folder: Path, key: str) -> None:
    """Save as Lightning's strategies do: FSDP under ``model``, FSDP2 under ``state_dict``."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}.group", rank=rank, world_size=2
    )
    rest = read_checkpoint(checkpoint)
    module = nn.Module()
    module.model = load_checkpoint(checkpoint).model
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    optimizer = {"state": {"step": torch.ones(3)}, "name": "AdamW"}
    save({key: module.state_dict(), "optimizer_0": optimizer}, checkpoint_id=folder)
    if rank == 0:
        del rest["state_dict"], rest["optimizer_states"]
        torch.save(rest, folder / "meta.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's best checkpoint in the shards of two processes."""
    folder = tmp_path_factory.mktemp("sharded") / "last.ckpt"
    start_processes(_save_shards, (best(run), folder, "model"), nprocs=2, start_method="fork")
    assert len(list(folder.glob("*.distcp"))) == 2
    return folder


def test_from_the_shards_of_two_processes(run: Path, sharded: Path) -> None:
    assert torch.equal(of(export(sharded)), of(run / "hf"))
    whole, ours = read_checkpoint(best(run))["state_dict"], read_sharded(sharded)["state_dict"]
    assert whole.keys() == ours.keys()


def test_a_run_goes_on_from_its_shards(sharded: Path, tmp_path: Path) -> None:
    assert find_checkpoint(str(sharded)) == sharded
    shutil.copytree(sharded, tmp_path / "run/checkpoints/last.ckpt")
    assert find_checkpoint(str(tmp_path / "run")) == tmp_path / "run/checkpoints/last.ckpt"
    found = run_of(tmp_path / "run/checkpoints/last.ckpt")
    assert found is not None
    assert found.folder == tmp_path / "run"


def test_shards_run_no_code(sharded: Path, tmp_path: Path, mistake: Mistake) -> None:
    damaged = tmp_path / "damaged.ckpt"
    shutil.copytree(sharded, damaged)
    (damaged / ".metadata").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert "could run code" in mistake("export", f"--model={damaged}", "--to=out")
    assert not Path("ran").exists()
    (damaged / ".metadata").unlink()
    assert ".metadata" in mistake("export", f"--model={damaged}", "--to=out")


def test_bf16(run: Path) -> None:
    folder = export(run, "--dtype=bf16")
    cast: nn.Module = load_checkpoint(best(run)).model
    cast.bfloat16()
    assert of(folder).dtype == torch.bfloat16
    assert torch.equal(of(folder), logits(cast))
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["n_ctx"] == config["n_positions"] == 64  # llama.cpp's converter asks for it


def test_one_copy_of_tied_weights_in_a_file_that_others_may_read(run: Path) -> None:
    folder = export(run)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    model = GPT2LMHeadModel.from_pretrained(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    modes = {file.stat().st_mode for file in folder.iterdir()}
    assert len(modes) == 1


def test_tokenizer_and_settings(run: Path, tiny_model: Path) -> None:
    folder = export(run)
    ours, theirs = (AutoTokenizer.from_pretrained(it) for it in (folder, tiny_model))
    text = "the river — 你好 👩‍🚀\n"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.decode(ours(text)["input_ids"]) == text
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == settings["pad_token_id"] == theirs.eos_token_id
    assert settings["max_new_tokens"] == 4  # how the run drew its samples


@pytest.mark.slow
def test_others_load_it_without_our_package(run: Path) -> None:
    export(run)
    code = (
        "import sys; sys.modules['gpt2_lightning'] = None\n"
        "from transformers import AutoTokenizer, pipeline\n"
        "writer = pipeline('text-generation', model='out')\n"
        "text = writer('the river', max_new_tokens=5, do_sample=False)[0]['generated_text']\n"
        "assert AutoTokenizer.from_pretrained('out').decode([1, 2])\n"
        "assert writer.model.config.pad_token_id is not None\n"
        "print(repr(text))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("'the river")
    assert len(done.stdout.strip()) > len("'the river'")


# --- whole or not at all --------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_no_wrong_folder(run: Path) -> None:
    """The moments: ten of a fixed seed, the middle of the weights and of the swap, and the end."""
    done = run_forked(str(run), str(Path.cwd()), call=print_outcomes)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert [len(found) for found in outcomes.values()] == [5, 14]
    for found in outcomes.values():
        assert [wanted for wanted, _ in found] == [left for _, left in found]
    assert {left for _, left in outcomes["fresh"]} <= {"absent", "new"}
    assert {left for _, left in outcomes["over another"]} == {"absent", "old", "new"}
    assert not list(Path.cwd().glob(".out-*"))  # the last export swept


def test_a_killed_swap_gives_the_old_folder_back(tmp_path: Path) -> None:
    left = Path(tempfile.mkdtemp(prefix=".out-", suffix=".partial", dir=tmp_path))
    (left / "old").mkdir()
    (left / "old" / "a.txt").write_text("mine")
    (tmp_path / ".out-settings").mkdir()  # a user's
    with whole_folder(tmp_path / "out"):
        assert (tmp_path / "out" / "a.txt").read_text() == "mine"
    assert not left.exists()
    assert (tmp_path / ".out-settings").is_dir()


def test_one_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as first:
        with whole_folder(tmp_path / "out"):
            assert first.is_dir()
        assert first.is_dir()


def test_a_wrong_tokenizer_does_not_appear(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(folder: str, *, said: str) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["river"])
        return tokenizer

    monkeypatch.setattr(hf_folder, "load_tokenizer_files", damaged)
    with pytest.raises(RuntimeError, match="reads 'The river"):
        export(run)
    assert not Path("out").exists()


# --- nobody's files -------------------------------------------------------------------------------


def test_a_folder_with_files_is_refused(run: Path, mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for more in ((), ("--overwrite=true",)):
        message = mistake("export", f"--model={run}", "--to=mine", *more)
        assert "--to mine" in message
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert "--to" in mistake("export", f"--model={run}", f"--to={run}", "--overwrite")
    assert "file" in mistake("export", f"--model={run}", "--to=mine/thesis.txt")
    assert "file" in mistake("export", f"--model={run}", "--to=mine/thesis.txt/out")


def test_an_earlier_export_is_replaced_when_asked(run: Path, mistake: Mistake) -> None:
    Path("out").mkdir()  # an empty one is nobody's
    export(run)
    assert "--overwrite true" in mistake("export", f"--model={run}", "--to=out")
    assert of(export(run, "--dtype=bf16", "--overwrite=true")).dtype == torch.bfloat16
    rounded: nn.Module = load_checkpoint(best(run)).model
    rounded.bfloat16().float()
    assert torch.equal(of(export("out", "--overwrite")), logits(rounded))  # over itself
    for name in ("README.md", "model.gguf"):
        export(run, "--overwrite")
        with Path("out", name).open("a") as stream:
            stream.write("by hand")
        message = mistake("export", f"--model={run}", "--to=out", "--overwrite")
        assert name in message
        assert Path("out", name).read_text(errors="ignore").endswith("by hand")
        shutil.rmtree("out")


# --- the model card -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(run: Path) -> Path:
    """A card of evaluate, of the run."""
    file = run.parent.parent / "card.json"
    words = ("--protocol=sliding", "--context=32", f"--output={file}", "--device=cpu")
    main(["evaluate", f"--model={run}", *words])
    return file


def test_the_card_says_what_was_measured_and_how(run: Path, evaluated: Path) -> None:
    words = (f"--card={evaluated}", "--license=Apache-2.0", "--language=en")
    folder = export(run, *words, to="gpt2-of-rivers")
    text = (folder / "README.md").read_text(encoding="utf-8")
    data: Any = ModelCard(text).data  # as the Hub's own tool reads it
    measured = json.loads(evaluated.read_text())
    assert (data.license, data.language) == ("apache-2.0", "en")
    assert (data.pipeline_tag, data.library_name) == ("text-generation", "transformers")
    assert data.model_name == "gpt2-of-rivers"
    results = {it.metric_type: it for it in data.eval_results}
    found = results["bits_per_byte"]
    assert found.metric_value == pytest.approx(measured["bits_per_byte"], abs=1e-4)
    assert found.metric_name == "bits per byte (sliding, context 32, stride 16)"
    assert (found.dataset_type, found.dataset_split) == ("river.txt", "test")
    for part in (
        measured["sha256"],
        measured["comparable"],
        f"{measured['token_perplexity']:,.4f}",
        "sliding, context 32, stride 16",
        "| peak learning rate | 0.003 |",
        "| optimizer steps | 4 of 4 |",
        "| cleaning | `none`, which loses no text |",
        "| source | `river.txt` |",
        "The run's own validation",
        "fine-tuned from",
    ):
        assert part in text, part


def test_it_names_no_folder_of_this_machine(run: Path, evaluated: Path) -> None:
    folder = export(run, f"--card={evaluated}")
    for file in folder.iterdir():
        content = file.read_bytes()
        for private in (b"alice", b"private", b"/tmp", str(run.parents[2]).encode()):
            assert private not in content, (file.name, private)


def test_a_licence_is_asked_for_and_nothing_made_up(
    run: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (export(run) / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == "other"
    assert {"language", "base_model", "datasets", "model-index"}.isdisjoint(metadata)
    assert "has to fill it in" in text
    assert "licence" in capsys.readouterr().out
    bare = (export(tiny_model, to="bare") / "README.md").read_text(encoding="utf-8")
    assert "Nothing is known here of the text" in bare
    assert "Nothing was measured." in bare


def test_names_of_the_hub_are_told_whole(run: Path, tmp_path: Path) -> None:
    state = torch.load(best(run), weights_only=True)
    state["hyper_parameters"]["pretrained"] = "openai-community/gpt2"
    state["datamodule_hyper_parameters"]["source"] = "Salesforce/wikitext"
    state["datamodule_hyper_parameters"]["subset"] = "wikitext-2-v1"
    assert state["callbacks"]["run.facts"]["local"] == ["data.source", "model.pretrained"]
    torch.save(state, tmp_path / "local.ckpt")  # folders of this name lay where the run began
    text = (export("local.ckpt", to="local") / "README.md").read_text(encoding="utf-8")
    assert "Salesforce" not in text
    assert "openai-community" not in text
    state["callbacks"]["run.facts"]["local"] = []
    torch.save(state, tmp_path / "a.ckpt")
    text = (export("a.ckpt") / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["base_model"] == "openai-community/gpt2"
    assert metadata["datasets"] == ["Salesforce/wikitext"]
    begun, source = "`openai-community/gpt2`", "`Salesforce/wikitext` `wikitext-2-v1`"
    assert f"fine-tuned from {begun} on {source}" in text


def test_a_runs_own_card_is_taken(run: Path, evaluated: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(evaluated, tmp_path / "run" / "card.json")
    sha256 = json.loads(evaluated.read_text())["sha256"]
    assert sha256 in (export(tmp_path / "run") / "README.md").read_text(encoding="utf-8")


# --- the Hub --------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the Hub's client out, to loopback."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


def test_push(
    run: Path,
    tmp_path: Path,
    online: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with small_hub(tmp_path / "hub") as (endpoint, _):
        (tmp_path / "hub").mkdir()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        export(run, "--push_to_hub=rivers/gpt2", "--license=mit")
        assert "rivers/gpt2" in capsys.readouterr().out.splitlines()[-1]
        export(run, "--push_to_hub=rivers/gpt2", "--overwrite")  # it is there already
    there = tmp_path / "hub/models/rivers/gpt2"
    assert torch.equal(of(there), of("out"))
    assert {file.name for file in there.iterdir()} == {
        file.name for file in Path("out").iterdir() if file.name != "export.json"
    }
    assert 'model="rivers/gpt2"' in (there / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "hub/created.json").read_text())["visibility"] == "private"


def test_what_the_hub_refuses(
    run: Path,
    tmp_path: Path,
    online: None,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Mistake,
) -> None:
    words = ("export", f"--model={run}", "--push_to_hub=rivers/gpt2", "--overwrite", "--to=out")
    with small_hub(tmp_path / "hub") as (endpoint, _):
        (tmp_path / "hub").mkdir()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_another")
        message = mistake(*words)
        assert "may not write there" in message
        assert "hf auth login" in message
    assert "hf auth login" in mistake(*words)  # the hub has gone
    assert Path("out/model.safetensors").is_file()


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model=absent", "--to=out"), "--model absent"),
        (("--to=out",), "model"),
        (("--model={run}",), "to"),
        (("--model={run}", "--to=out", "--dtype=fp16"), "bf16"),
        (("--model={run}", "--to=out", "--license=Apache 2"), "--license Apache 2"),
        (("--model={run}", "--to=out", "--language=English"), "--language English"),
        (("--model={run}/hf", "--to=out", "--which=last"), "--which last"),
        (("--model={run}", "--to=out", "--card=absent.json"), "--card absent.json"),
        (("--model={run}", "--to=out", "--card={run}/facts.json"), "it is not a card"),
        (("--model={run}", "--to=out", "--card={run}/config.yaml"), "JSON"),
        (("--model={run}", "--to=out", "--push_to_hub=a/b/c"), "--push_to_hub a/b/c"),
        (("--model={run}", "--to=out", "--push-to-hub=name"), "ORG/NAME"),
        (("--model={run}", "--to=out", "--push_to_hub=a/b"), "HF_HUB_OFFLINE"),
        (("--model={run}/checkpoints", "--to=out"), "--model"),
        (("--model={run}", "--to=out", "--overwite"), "Did you mean --overwrite?"),
    ],
)
def test_mistakes(run: Path, mistake: Mistake, words: tuple[str, ...], message: str) -> None:
    assert message in mistake("export", *(word.replace("{run}", str(run)) for word in words))
    assert not Path("out").exists()


def test_without_a_token(
    run: Path, online: None, monkeypatch: pytest.MonkeyPatch, mistake: Mistake
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "absent")
    message = mistake("export", f"--model={run}", "--to=out", "--push_to_hub=a/b")
    assert "hf auth login" in message
    assert not Path("out").exists()


def test_a_card_of_another_model(run: Path, evaluated: Path, mistake: Mistake) -> None:
    card = json.loads(evaluated.read_text()) | {"parameters": 124_439_808}
    Path("other.json").write_text(json.dumps(card))
    message = mistake("export", f"--model={run}", "--to=out", "--card=other.json")
    assert "124,439,808" in message


def test_a_model_that_diverged(run: Path, mistake: Mistake) -> None:
    state = torch.load(best(run), weights_only=True)
    state["state_dict"]["model.transformer.ln_f.bias"][0] = torch.nan
    torch.save(state, "nan.ckpt")
    assert "diverged" in mistake("export", "--model=nan.ckpt", "--to=out")
    assert not Path("out").exists()
