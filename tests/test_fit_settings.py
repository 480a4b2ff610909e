"""The flags of fit, for verbs that train nothing."""

from pathlib import Path

import pytest

from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit_settings import FitSettings


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


def test_help_is_the_verbs_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m gpt2_lightning look [--config FILE] [flags]\n")
    assert "Look at something." in text
    assert "Rows to show." in text
