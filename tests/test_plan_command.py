"""``plan``: what it says is what fit does, and its advice keeps its word."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import OPTConfig

from gpt2_lightning.cli import main
from tests.command_line import CALM, Mistake, fine_tuning, fit

FLAGS = (*CALM, "--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return the document that `plan --json` prints, and nothing else beside it."""
    capsys.readouterr()
    main(["plan", *words, "--json"])
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.val_check_interval=4",),
        ("--trainer.val_check_interval=0.3", "--trainer.limit_train_batches=5"),
        ("--trainer.max_steps=7", "--trainer.val_check_interval=6"),
        ("--trainer.check_val_every_n_epoch=2", "--model.schedule_steps=30"),
    ],
)
def test_steps_are_those_of_fit(
    wiki_folder: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *FLAGS, *words, "--samples.enabled=false")
    words = (*words, "--data.batch_size=8")
    planned = plan(capsys, *words)
    run = fit(*words)
    facts = json.loads((run / "facts.json").read_text())
    steps = planned["steps"]
    assert facts["steps"] == {
        "schedule": steps["schedule"],
        "epoch": steps["steps_per_epoch"],
        "blocks": steps["blocks_per_step"],
        "tokens": steps["tokens_per_step"],
        "trained": steps["steps"],
        "skipped": 0,
    }
    assert planned["model"]["parameters"] == facts["model"]["parameters"]
    curve = (run / "surprisal.jsonl").read_text().splitlines()  # a line for each validation
    assert json.loads(curve[-1])["step"] == steps["steps"]
    assert len(curve) - 1 == steps["validations"]


@pytest.mark.slow
def test_disk_is_what_fit_leaves(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *FLAGS, "--trainer.max_steps=2")
    planned = plan(capsys, *words)["disk"]
    files = list((fit(*words) / "checkpoints").iterdir())
    assert len(files) == planned["checkpoints"]
    beside = 150_000  # names of tensors, the tokenizer, the state of the callbacks
    for file in files:
        assert 0 <= file.stat().st_size - planned["checkpoint"] < beside


def test_nothing_is_left_behind(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(Path().rglob("*"))
    words = (*fine_tuning(wiki_folder, tiny_model), *FLAGS, "--model.warmup_steps=3")
    main(["plan", *words, "--measure", "--json"])
    shown = capsys.readouterr()
    assert "is not logged" not in shown.err  # a few steps are no run
    time = json.loads(shown.out)["time"]
    likely, least, most = time["step"]
    assert 0 < least <= likely <= most
    assert time["training"][0] == pytest.approx(likely * plan(capsys, *words)["steps"]["steps"])
    assert {it for it in set(Path().rglob("*")) - before if it.parts[0] != "cache"} == set()


def test_time_from_a_rate(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *FLAGS, "--device_flops=1e12")
    document = plan(capsys, *words)
    flops = document["model"]["flops_per_token"] * document["steps"]["tokens_per_step"]
    likely, least, most = document["time"]["step"]
    assert least == pytest.approx(flops / 0.462e12)
    assert most == pytest.approx(flops / 0.213e12)
    assert least < likely < most
    again = plan(capsys, *words, "--model.gradient_checkpointing=true")["time"]["step"]
    assert again[0] == pytest.approx(4 / 3 * likely)


@pytest.mark.slow
def test_advice_keeps_its_word(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an advice says the memory becomes is what the plan with its flags says."""
    words = (
        *fine_tuning(wiki_folder, tiny_model),
        "--data.batch_size=64",
        "--data.block_size=64",
        "--trainer.accelerator=gpu",
        "--trainer.devices=2",
    )
    scarce = (*words, "--device_memory=0.65")
    before = plan(capsys, *scarce)
    assert before["memory"]["fits"] is False
    flags = [it["flags"] for it in before["advice"]]
    assert any("gradient_checkpointing" in it for it in flags)
    assert any("accumulate_grad_batches" in it for it in flags)
    assert any("fsdp" in it for it in flags)
    for it in before["advice"]:
        if "fsdp" in it["flags"]:
            continue  # an overlay of the repository, which is not this folder
        after = plan(capsys, *scarce, *it["flags"].split())
        assert after["memory"]["needed"] == it["needed"] < before["memory"]["needed"]
        assert after["memory"]["fits"] == it["fits"]
        assert after["steps"]["blocks_per_step"] == before["steps"]["blocks_per_step"]
    assert plan(capsys, *words, "--device_memory=100")["advice"] == []


def test_a_time_limit_fits_the_steps(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *FLAGS, "--device_flops=1e9")
    whole = plan(capsys, *words)
    half = whole["time"]["whole"][0] / 2
    found = plan(capsys, *words, f"--minutes={half / 60}")
    assert 0.3 * whole["steps"]["steps"] < found["steps"]["steps"] < 0.6 * whole["steps"]["steps"]
    assert found["steps"]["schedule"] == found["steps"]["steps"]
    assert found["time"]["whole"][0] <= half + 1
    assert not any("max_time" in warning for warning in found["warnings"])
    changed = ("--model.schedule_changes=[[0,50],[9,40]]", "--trainer.max_epochs=-1")
    assert plan(capsys, *words, *changed)["steps"]["steps"] == 40
    plenty = plan(capsys, *words, f"--minutes={half}")
    assert plenty["steps"] == whole["steps"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.warmup_steps=500",), "--model.warmup_steps"),
        (("--data.block_size=65",), "--data.block_size 64 would work"),
        (("--trainer.precision=bf16-true",), "bf16"),
        (("--model.learning_rate=0.05",), "is usual"),
        (
            ("--measure", "--trainer.max_time=00:00:00:00", "--model.schedule=constant"),
            "ends the run after some 0 of",
        ),
        (("--trainer.check_val_every_n_epoch=3",), "never comes"),
        (("--trainer.val_check_interval=5",), "--trainer.val_check_interval 4 would work"),
        (("--trainer.val_check_interval=500",), "check_val_every_n_epoch null"),
        (("--trainer.max_steps=100",), "--model.schedule_steps 100"),
        (("--data.batch_size=5000",), "masked blocks"),
        (("--trainer.accelerator=gpu", "--device=t4"), "--trainer.devices auto"),
        (
            ("--device=t4", "--trainer.devices=1", "--trainer.precision=bf16-mixed"),
            "16-mixed would work",
        ),
    ],
)
def test_warnings(
    wiki_folder: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    """Each comes alone, and a run without the mistake has none."""
    usual = (*fine_tuning(wiki_folder, tiny_model), *FLAGS, "--model.learning_rate=5e-5")
    assert plan(capsys, *usual)["warnings"] == []
    (warning,) = plan(capsys, *usual, *words)["warnings"]
    assert said in warning


def test_screen(wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *fine_tuning(wiki_folder, tiny_model), *FLAGS, "--device_memory=0.1"])
    shown = capsys.readouterr().out
    assert "it does not fit" in shown
    assert "--model.gradient_checkpointing true" in shown
    assert "parameters" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device=abacus",), "--device abacus"),
        (("--device_memory=0",), "--device_memory 0"),
        (("--device_flops=-1",), "--device_flops"),
        (("--measure", "--device=t4"), "--measure"),
        (("--trainer.accelerator=gpu",), "--device_memory"),
        (("--trainer.devices=none",), "--trainer.devices none"),
        (("--trainer.strategy=fsdp", "--trainer.devices=2"), "--trainer.strategy fsdp2"),
        (("--trainer.max_epochs=-1",), "--trainer.max_epochs"),
        (("--model.pretrained=absent",), "absent"),
    ],
)
def test_mistakes(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake, words: tuple[str, ...], said: str
) -> None:
    assert said in mistake("plan", *fine_tuning(wiki_folder, tiny_model), *CALM, *words)


def test_a_vocabulary_that_does_not_suit_is_warned_of(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("zh.txt").write_text("从前有一座山，山里有一座庙。\n" * 60, encoding="utf-8")
    warnings = plan(capsys, *fine_tuning(Path("zh.txt"), tiny_model), *FLAGS)["warnings"]
    assert any("The vocabulary does not suit this language" in warning for warning in warnings)


def test_a_model_whose_layers_lie_in_a_decoder(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = OPTConfig(
        vocab_size=1000,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    config.save_pretrained("opt")
    words = ("--model.pretrained=opt", "--data.source=builtin", f"--data.tokenizer={tiny_model}")
    planned = plan(capsys, *words, "--data.block_size=32")
    assert planned["model"]["layers"] == 2
