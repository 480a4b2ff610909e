"""The flags of fit, for verbs that train nothing."""

import shutil
from pathlib import Path

import pytest

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit.settings import FitSettings


def look(settings: FitSettings, *, rows: int = 3, json: bool = False) -> None:
    """Look at something.

    Args:
        settings: As fit would have them.
        rows: Rows to show.
        json: Print JSON.
    """


def read(*words: str) -> FitSettings:
    return FitSettings("look", list(words), look)


def test_own_flags_stand_beside_those_of_fit() -> None:
    settings = read("--json", "--data.block_size=64", "--rows=5", "--seed-everything=7")
    assert settings.own == {"rows": 5, "json": True}
    assert read("--json=false").own == read().own == {"rows": 3, "json": False}
    assert settings.values.data.block_size == settings.values.model.block_size == 64
    assert settings.values.data.seed == 7
    assert settings.values.trainer.max_epochs == 3  # as fit fills it in


def test_nothing_is_built_or_written() -> None:
    settings = read("--model.pretrained=not/there", "--data.source=nowhere.txt")
    assert settings.values.data.tokenizer == "not/there"
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--jsn", "--jsn: there is no such flag. Did you mean --json?"),
        ("--data.sorce=x", "Did you mean --data.source?"),
        ("--rows=many", "--rows"),
        ("--seed_everything=true", "give a whole number"),
    ],
)
def test_a_mistake_is_named(word: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(word)
    assert message in str(refused.value)


def test_one_callback_needs_no_list() -> None:
    (one,) = read("--trainer.callbacks=LearningRateMonitor").values.trainer.callbacks
    assert one.class_path.endswith(".LearningRateMonitor")


def test_help_is_the_verbs_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m gpt2_lightning look [--config FILE] [flags]\n")
    assert "Look at something." in text
    assert "Rows to show." in text


@pytest.mark.parametrize(
    ("typed", "tokenizer"),
    [
        ((), "old"),
        (("--model.pretrained=new",), "new"),
        (("--model.pretrained=new", "--data.tokenizer=old"), "old"),
        (("--model.pretrained=null",), None),
    ],
)
def test_another_model_than_a_saved_runs_brings_its_own_tokenizer(
    tiny_model: Path, typed: tuple[str, ...], tokenizer: str | None
) -> None:
    for name in ("old", "new"):
        shutil.copytree(tiny_model, name)
    saved = "model:\n  pretrained: old\n  revision: v1\ndata:\n  tokenizer: old\n"
    saved += "  tokenizer_revision: v1\n  block_size: 16\n"
    Path("saved.yaml").write_text(saved, encoding="utf-8")
    values = read("--config=saved.yaml", *typed).values
    assert values.data.tokenizer == tokenizer
    assert values.model.revision == (None if typed else "v1")
    assert values.data.block_size == 16


def test_a_saved_run_from_scratch_with_a_model_says_what_is_left_out(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = "model:\n  architecture: {layers: 9}\n  hf_config: {model_type: gpt2}\n"
    Path("saved.yaml").write_text(saved + "data: {vocab_size: 512}\n", encoding="utf-8")
    values = read("--config=saved.yaml", f"--model.pretrained={tiny_model}").values
    assert values.model.hf_config is values.data.vocab_size is values.model.vocab_size is None
    said = "--data.vocab_size and --model.architecture and --model.hf_config of the configuration "
    said += f"file: left out, --model.pretrained {tiny_model} brings its own."
    assert said in capsys.readouterr().err
    values = read("--config=saved.yaml").values
    assert values.model.hf_config == {"model_type": "gpt2"}
    assert values.model.vocab_size == 512
