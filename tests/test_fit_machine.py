"""What `auto` becomes on a machine, and that it stands in the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gpt2_lightning.cli import main
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit import machine
from gpt2_lightning.fit.settings import FitSettings
from gpt2_lightning.model.module import GPT2Module
from tests.command_line import CALM, Mistake, fine_tuning, fit

AUTO = ("--trainer.precision=auto", "--model.compile=auto")


def look(settings: FitSettings) -> None:
    """Look."""


def settled(*words: str) -> tuple[str, bool]:
    values: Any = FitSettings("look", [*AUTO, *words], look).values
    assert (values.trainer.precision, values.model.compile) == ("auto", "auto")
    machine.settle(values)
    return values.trainer.precision, values.model.compile


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU of the Ampere generation, with Triton."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(machine, "find_spec", lambda name: name)
    return monkeypatch


@pytest.mark.parametrize(
    ("speedup", "precision"), [(2.6, "bf16-mixed"), (1.5, "bf16-mixed"), (1.4, "32-true")]
)
def test_a_cpu_is_measured(speedup: float, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "bf16_speedup", {192: speedup}.get)
    words = ("--trainer.accelerator=cpu", "--model.architecture.width=192")
    assert settled(*words) == (precision, False)


def test_the_measurement() -> None:
    assert machine.bf16_speedup(32) > 0


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_processes_on_cpus_go_by_their_instructions(
    has: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"avx2": True, "amx_bf16": has}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)  # from 2.11 on
    monkeypatch.setattr(machine, "bf16_speedup", None)  # their timings would differ
    assert settled("--trainer.accelerator=cpu", "--trainer.devices=2") == (precision, False)
    assert settled("--trainer.accelerator=cpu", "--trainer.num_nodes=2") == (precision, False)


def test_a_gpu_goes_by_what_it_is(gpu: pytest.MonkeyPatch) -> None:
    assert settled() == ("bf16-mixed", True)
    assert settled("--trainer.max_steps=20") == ("bf16-mixed", False)
    gpu.setattr(machine, "find_spec", lambda name: None)
    assert settled() == ("bf16-mixed", False)
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert settled() == ("32-true", False)


def test_what_a_gpu_does_in_fp32_is_said(gpu: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    gpu.setattr(machine.log, "info", lambda line, *words: said.append(line % words))
    settled()
    gpu.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    settled()
    assert ["products in fp32 without TF32" in line for line in said] == [True, False]


def test_what_is_given_stays(gpu: pytest.MonkeyPatch) -> None:
    values: Any = FitSettings("look", ["--trainer.precision=32"], look).values
    machine.settle(values)
    assert (values.trainer.precision, values.model.compile) == (32, False)


@pytest.mark.slow
def test_the_choice_stands_in_the_run_and_goes_on_elsewhere(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "bf16_speedup", lambda width: 2.6)
    recipe = "trainer: {precision: auto, max_epochs: 1, limit_train_batches: 4}\n"
    Path("recipe.yaml").write_text(recipe + "model: {compile: auto}\n", encoding="utf-8")
    words = ("--config=recipe.yaml", *fine_tuning(wiki_folder, tiny_model))
    run = fit(*words, "--model.schedule_steps=4", "--trainer.max_steps=2")
    said = "--trainer.precision bf16-mixed (matrix products in bf16 are 2.6 times as quick as in fp"
    assert f"Chosen for this machine: {said}" in capsys.readouterr().err
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["trainer"]["precision"] == "bf16-mixed"
    assert settings["model"]["compile"] is False
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["trainer_settings"]["precision"] == "bf16-mixed"
    assert checkpoint["hyper_parameters"]["compile"] is False

    monkeypatch.setattr(machine, "bf16_speedup", lambda width: 0.1)
    main(["fit", f"--ckpt_path={run}", *AUTO, "--trainer.max_steps=-1", *CALM])
    later = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert later["global_step"] == 4
    assert later["trainer_settings"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize("has", [True, False])
def test_plan_shows_the_same(
    has: bool,
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "bf16_speedup", lambda width: 2.6 if has else 0.1)
    words = ("plan", *fine_tuning(wiki_folder, tiny_model), *AUTO, "--json")

    def precision(*more: str) -> str:
        capsys.readouterr()
        main([*words, *more])
        return str(json.loads(capsys.readouterr().out)["precision"])

    assert precision("--trainer.accelerator=cpu") == ("bf16-mixed" if has else "32-true")
    assert precision("--device=a100", "--trainer.devices=1") == "bf16-mixed"
    assert precision("--device=t4", "--trainer.devices=1") == "32-true"


def test_other_words_are_refused(mistake: Mistake) -> None:
    assert "'auto' or null. Found: best" in mistake("fit", *CALM, "--trainer.precision=best")
    assert "--model.compile" in mistake("fit", *CALM, "--model.compile=perhaps")
    with pytest.raises(UsageError, match="from Python, give True or False"):
        GPT2Module(compile="auto", vocab_size=100)
