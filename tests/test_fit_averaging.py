"""--model.averaging ema, and --model.optimizer muon: validated, kept, resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning import load
from gpt2_lightning.checkpoint import read_checkpoint
from gpt2_lightning.cli import main
from tests.command_line import CALM, Mistake, curves, fine_tuning, fit, run_forked
from tests.test_fit_distributed import NO_DROPOUT, TWO
from tests.test_fit_nonfinite import spoil

pytestmark = pytest.mark.slow

STEPS = 24
HEAVY = "--model.learning_rate=0.1"  # at which the raw weights swing about


class Recorded(Callback):
    """Notes a weight before training and after each step."""

    seen: list[torch.Tensor] = []  # noqa: RUF012 - of one run in one test

    @staticmethod
    def _note(module: LightningModule) -> None:
        weight = module.get_parameter("model.transformer.wte.weight")
        Recorded.seen.append(weight.detach().clone())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note it."""
        self._note(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Note it."""
        self._note(pl_module)


def averaged(text: Path, model: Path, *words: str) -> Path:
    return fit(
        *fine_tuning(text, model),
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=8",
        "--model.schedule=constant",
        "--model.averaging=ema",
        *words,
    )


def test_the_average_follows_the_steps_and_the_better_weights_are_kept(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Recorded.seen.clear()
    own = "--trainer.callbacks+=tests.test_fit_averaging.Recorded"
    run = averaged(wiki_folder, tiny_model, HEAVY, own)
    mean = Recorded.seen[0].clone()
    for step, weight in enumerate(Recorded.seen[1:], 1):
        mean.lerp_(weight, 9 / (10 + step))
    found = curves(run)
    raw, average, kept = (found[f"val/{name}"] for name in ("raw_loss", "averaged_loss", "loss"))
    assert kept[1:] == [min(pair) for pair in zip(raw, average, strict=True)]
    assert average[-1] < raw[-1]
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    name = "model.transformer.wte.weight"
    assert last["averaging"]["holds"] == "averaged"
    assert last["averaging"]["steps"] == STEPS
    assert torch.allclose(last["state_dict"][name], mean, atol=1e-6)
    assert torch.equal(last["averaging"]["other"][name], Recorded.seen[-1])
    assert "of the averaged weights" in " ".join(capsys.readouterr().out.split())
    best = next((run / "checkpoints").glob("best-*"))
    weights = load(str(run)).model.state_dict()["transformer.wte.weight"]
    assert torch.equal(weights, read_checkpoint(best)["state_dict"][name])


def test_the_verbs_measure_what_validation_measured(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = averaged(wiki_folder, tiny_model, HEAVY)
    (best,) = (run / "checkpoints").glob("best-*")
    main(["validate", f"--ckpt_path={best}", *CALM])
    measured = min(curves(run)["val/loss"])
    assert f"{measured:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--model.averaging=ema", HEAVY), ("--model.optimizer=muon",)])
def test_a_stopped_run_ends_as_one_that_was_not(
    words: tuple[str, ...], wiki_folder: Path, tiny_model: Path
) -> None:
    plain = (*fine_tuning(wiki_folder, tiny_model), "--trainer.val_check_interval=4", *words)
    plain = (*plain, "--model.schedule_steps=8")
    whole = fit(*plain, "--trainer.max_steps=8")
    part = fit(*plain, "--trainer.max_steps=4")
    main(["fit", f"--ckpt_path={part}", "--trainer.max_steps=8", *CALM])
    for name in ("train/loss", "val/loss"):
        assert curves(part)[name] == curves(whole)[name]
    one, other = (read_checkpoint(it / "checkpoints" / "last.ckpt") for it in (part, whole))
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name])
    if "averaging" in one:
        for name, weight in one["averaging"]["other"].items():
            assert torch.equal(weight, other["averaging"]["other"][name])


@pytest.mark.parametrize("flag", ["optimizer=muon", "averaging=ema"])
def test_what_needs_whole_matrices_is_refused_where_they_are_sharded(
    flag: str, mistake: Mistake
) -> None:
    said = mistake("fit", f"--model.{flag}", "--trainer.strategy=fsdp2", "--trainer.devices=2")
    assert f"--model.{flag.replace('=', ' ')}: it needs whole matrices" in said
    assert "--trainer.strategy ddp would work" in said


def test_a_step_that_is_left_out_is_not_averaged(wiki_folder: Path, tiny_model: Path) -> None:
    run = averaged(wiki_folder, tiny_model, "--model.on_nonfinite=skip", spoil(5, 6))
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last["averaging"]["steps"] == STEPS - 2


def test_two_processes_take_the_steps_of_one(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        *fine_tuning(wiki_folder, tiny_model),
        *("--trainer.max_steps=6", "--trainer.val_check_interval=6", "--samples.enabled=false"),
        *("--model.optimizer=muon", "--model.averaging=ema"),
        *NO_DROPOUT,
    )
    one = fit(*words, "--data.batch_size=4")
    assert "--model.optimizer muon on pretrained weights" in capsys.readouterr().err
    done = run_forked("fit", *words, "--data.batch_size=2", *TWO, processes=2)
    assert done.returncode == 0, done.stderr
    two = Path("lightning_logs/version_1")
    for name in ("train/loss", "val/loss", "val/averaged_loss"):
        assert curves(two)[name] == pytest.approx(curves(one)[name], rel=1e-5)
