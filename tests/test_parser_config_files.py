"""What is said of YAML files of settings, and of values in YAML."""

import json
import locale
from pathlib import Path

import pytest
import yaml

from tests.command_line import Mistake, fine_tuning, fit

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file holds no settings."),
        ("# trainer:\n", "the file holds no settings."),
        ("max_epochs: 3\n", "max_epochs stands outside of its group. Write it below `trainer:`"),
        ("learning_rate: 1\n", "as a flag it is --model.learning_rate."),
        ("trainer:\n  max_epoch: 1\n", "trainer.max_epoch: there is no such setting. Did you mean"),
        ("model: {leraning_rate: 1}\n", "Did you mean model.learning_rate?"),
        ("trainer: 3\n", "trainer: settings are expected below it. Found: 3"),
        ("just text", "settings are expected, such as `trainer:`"),
        ("- a\n- b\n", "Found: ['a', 'b']"),
        ("trainer:\n  max_epochs: [1\n", "no YAML (line 3, column 1:"),
        ("trainer:\n\tmax_epochs: 1\n", "YAML is indented with spaces, not tabs."),
        (ALIASES, "more than 100,000 values"),
        ("trainer: " + "[" * 500, "more than 100 levels"),
        ("trainer: &a\n  x: *a\n", "*a stands for nothing before it"),
        ("trainer: {max_epochs: 1}\ntrainer: {max_steps: 1}\n", "trainer stands twice"),
    ],
)
def test_a_file_is_named_with_what_is_amiss(mistake: Mistake, text: str, said: str) -> None:
    Path("mine.yaml").write_text(text, encoding="utf-8")
    message = mistake("fit", "--config", "mine.yaml")
    assert message.startswith("error: --config mine.yaml: ")
    assert said in message


def test_a_file_in_another_encoding_or_of_another_kind(mistake: Mistake) -> None:
    Path("mine.yaml").write_bytes("model: {pretrained: caf\u00e9}\n".encode("latin-1"))
    assert "--config mine.yaml: not UTF-8 at byte 23" in mistake("fit", "--config=mine.yaml")
    Path("large.yaml").write_text("a" * 1_000_001, encoding="utf-8")
    assert "large.yaml: the file has 1,000,001 bytes" in mistake("fit", "-c", "large.yaml")


def test_a_file_that_the_system_would_read_in_another_encoding(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale: "cp936")
    Path("mine.yaml").write_text("data: {source: \u8bd7.txt}\n", encoding="utf-8")
    message = mistake("fit", "--config", "mine.yaml")
    assert "--config mine.yaml: it holds letters beyond ASCII, and this system" in message
    assert message.endswith("as cp936. PYTHONUTF8=1 in the environment reads them as UTF-8.")
    Path("mine.yaml").write_text("data: {sourc: a.txt}\n", encoding="utf-8")
    assert "data.sourc: there is no such setting" in mistake("fit", "--config", "mine.yaml")


def test_the_value_of_a_flag_is_bounded_too(mistake: Mistake) -> None:
    assert "more than 100,000 values" in mistake("fit", "--trainer.callbacks", ALIASES)


def test_what_is_inside_a_value_is_left_to_the_parser(mistake: Mistake) -> None:
    Path("mine.yaml").write_text(
        "samples: {prompts: [a]}\n"
        "model: {sampling: {top_k: 3}, architecture: {layers: x}}\n"
        "trainer: {logger: {class_path: CSVLogger, init_args: {save_dir: .}}}\n",
        encoding="utf-8",
    )
    message = mistake("fit", "--config=mine.yaml")
    assert message == "error: --model.architecture.layers: expected a value of type int. Found: x"


@pytest.mark.slow
def test_text_that_is_almost_yaml_is_text(wiki_folder: Path, tiny_model: Path) -> None:
    prompts = ["Q: a\nQ: b", "[*Exit*]"]
    words = [word for prompt in prompts for word in ("--samples.prompts+", prompt)]
    timer = ("--trainer.callbacks=Timer", "--trainer.callbacks.duration=00:01:00:00")
    run = fit(*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=1", *words, *timer)
    lines = (run / "samples.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in lines} == set(prompts)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["samples"]["prompts"] == prompts
    assert settings["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"
