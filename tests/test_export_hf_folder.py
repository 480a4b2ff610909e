"""The run's hf/ folder: the checkpoint's very model, for every tool of the ecosystem."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2LMHeadModel,
    pipeline,
)

from gpt2_lightning.errors import UsageError
from gpt2_lightning.export import hf_folder
from gpt2_lightning.export.hf_folder import write_hf_folder
from gpt2_lightning.generate.text_model import TextModel, load_checkpoint, load_model
from gpt2_lightning.model.sampling import SamplingOptions
from tests.command_line import fine_tuning, fit
from tests.corpus import wiki_rows


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, the last of which is the best."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "a.txt").write_text("".join(wiki_rows(articles=24)), encoding="utf-8")
    words = (*fine_tuning(folder / "a.txt", tiny_model), "--trainer.max_steps=6")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return fit(*words, "--model.learning_rate=3e-3").absolute()


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The run in a folder of its own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def best(run: Path) -> TextModel:
    (file,) = (run / "checkpoints").glob("best-*.ckpt")
    return load_checkpoint(file)


def test_logits_are_the_checkpoints(run: Path) -> None:
    ids = torch.randint(0, 300, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = best(run).model(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(run / "hf")(ids).logits
    assert torch.equal(ours, theirs)


def test_it_differs_from_the_model_before_training(run: Path, tiny_model: Path) -> None:
    ids = torch.arange(16).unsqueeze(0)
    with torch.inference_mode():
        before = AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
        after = AutoModelForCausalLM.from_pretrained(run / "hf")(ids).logits
    assert (before - after).abs().max() > 0.1


def test_the_head_is_the_embedding(run: Path) -> None:
    for model in (AutoModelForCausalLM.from_pretrained(run / "hf"), best(run).model):
        assert isinstance(model, GPT2LMHeadModel)
        assert model.lm_head.weight is model.transformer.wte.weight


def test_tokenizer_and_settings(run: Path, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_model).get_vocab()
    assert tokenizer.model_max_length == 64
    settings = json.loads((run / "hf/generation_config.json").read_text())
    end = tokenizer.eos_token_id
    assert settings["eos_token_id"] == settings["pad_token_id"] == end
    assert (settings["top_k"], settings["top_p"], settings["temperature"]) == (50, 0.95, 0.7)


# transformers' fault: its pipeline passes itself a length it then warns of
@pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")
def test_the_pipeline_writes_from_it(run: Path) -> None:
    writer = pipeline("text-generation", model=str(run / "hf"), device="cpu")
    (sample,) = writer("the river", max_new_tokens=5, do_sample=False)
    assert sample["generated_text"].startswith("the river")
    assert len(sample["generated_text"]) > len("the river")


@pytest.mark.parametrize("what", ["run", "hf", "checkpoint"])
def test_load_model_takes_all_three(run: Path, what: str) -> None:
    name = {"run": run, "hf": run / "hf", "checkpoint": run / "checkpoints/last.ckpt"}[what]
    loaded = load_model(str(name))
    ids = torch.arange(8).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, best(run).model(ids).logits)
    assert not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer("the river")["input_ids"]) == "the river"


def test_a_checkpoint_needs_no_folder_beside_it(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere.ckpt"
    (run / "checkpoints/last.ckpt").rename(alone)
    assert load_model(str(alone)).tokenizer.eos_token == "<|endoftext|>"


def test_options_that_transformers_refuses_to_write(run: Path, tmp_path: Path) -> None:
    loaded = best(run)
    loaded.model.generation_config = GenerationConfig(temperature=0.5, max_new_tokens=7)
    write_hf_folder(tmp_path / "out", loaded.model, loaded.tokenizer, None)
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (written.temperature, written.max_new_tokens) == (None, 7)
    assert written.eos_token_id == loaded.tokenizer.eos_token_id


def test_a_checkpoint_that_diverged(run: Path) -> None:
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    state["state_dict"]["model.transformer.ln_f.weight"].fill_(float("nan"))
    torch.save(state, "diverged.ckpt")
    with pytest.raises(UsageError, match=r"--model diverged.ckpt: its logits are not numbers"):
        load_model("diverged.ckpt")


def test_a_folder_that_fails_its_check_does_not_appear(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = best(run)

    def damaged(folder: str, *_: object) -> torch.nn.Module:
        model = GPT2LMHeadModel.from_pretrained(folder)
        with torch.no_grad():
            model.transformer.wte.weight[0] += 1
        return model

    monkeypatch.setattr(hf_folder, "load_weights", damaged)
    with pytest.raises(RuntimeError, match="logits differ"):
        write_hf_folder(tmp_path / "out", loaded.model, loaded.tokenizer, SamplingOptions())
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
