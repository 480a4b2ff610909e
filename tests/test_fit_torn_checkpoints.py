"""Checkpoints that a power cut or an older version tore: passed over, and said."""

import shutil
from pathlib import Path

import pytest
import torch

from gpt2_lightning import run_folder
from gpt2_lightning.cli import main
from gpt2_lightning.export.model_card import find_origin
from gpt2_lightning.run_folder import (
    Run,
    find_checkpoint,
    newest_checkpoint,
    newest_run,
)
from tests.command_line import CALM, FitOnce, Mistake

pytestmark = pytest.mark.slow

LOGS = Path("lightning_logs")


@pytest.fixture
def run(fit_once: FitOnce) -> Path:
    """A run of 6 steps, with last.ckpt of step 6 and the three best."""
    return fit_once(
        "--trainer.max_steps=6",
        "--trainer.val_check_interval=2",
        "--trainer.check_val_every_n_epoch=null",
        "--checkpoint.save_top_k=3",
        "--checkpoint.filename=step{step}",
        "--samples.enabled=false",
    )


def tear(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_torn_last_is_passed_over(
    run: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    tear(run / "checkpoints" / "last.ckpt", share)
    tear(run / "checkpoints" / "step6.ckpt", share)
    (run / "checkpoints" / ".last.ckpt-0123abcd.partial").write_bytes(b"half")
    capsys.readouterr()
    main(["fit", "--ckpt_path=last", *CALM])
    said = capsys.readouterr().err
    assert said.count("last.ckpt was cut short") == 1
    assert "step4.ckpt is taken in place of last.ckpt" in said
    assert "Going on after step 4." in said
    assert ".last.ckpt-0123abcd.partial is removed" in said
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert not list(LOGS.rglob("*.partial"))


def test_a_torn_best_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "hf")
    tear(run / "checkpoints" / "step6.ckpt", 0.5)
    tear(run / "checkpoints" / "last.ckpt", 0)
    capsys.readouterr()
    main(["generate", f"--model={run}", "--prompt=the river", "--max_new_tokens=2"])
    captured = capsys.readouterr()
    assert "the river" in captured.out
    assert captured.err.count("step6.ckpt was cut short") == 1
    main(["test", "--ckpt_path=best", *CALM])
    assert "step4" in capsys.readouterr().out
    assert find_checkpoint(str(run)).name == "step4.ckpt"
    assert find_origin(str(run), "last").step == 4
    assert (
        Run(run).best_checkpoint()
        == Run(run).last_checkpoint()
        == run / "checkpoints" / "step4.ckpt"
    )


def test_a_run_with_nothing_whole_is_passed_over(run: Path, mistake: Mistake) -> None:
    other = LOGS / "version_7" / "checkpoints"
    other.mkdir(parents=True)
    (other / "last.ckpt").touch()
    (other / "sharded.ckpt").mkdir()  # killed before its last part
    assert newest_run(LOGS) == run
    assert find_checkpoint("last") == run / "checkpoints" / "last.ckpt"
    message = mistake("fit", f"--ckpt_path={other.parent}")
    assert "nor another checkpoint that is whole" in message


def test_a_checkpoint_that_its_run_removes_meanwhile_is_passed_over_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    last, gone = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "gone.ckpt"
    last.parent.mkdir()
    torch.save({}, last)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [last, gone])  # as it was a moment ago
    assert newest_checkpoint([last.parent]) == last
    gone.touch()
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone])
    monkeypatch.setattr(run_folder, "is_whole", lambda file: gone.unlink())
    assert Run(tmp_path / "another").last_checkpoint() is None
    assert not caplog.messages


def test_damage_inside_is_found_and_another_one_is_named(run: Path, mistake: Mistake) -> None:
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF  # torch loads it without a word
    last.write_bytes(content)
    torch.load(last, weights_only=True)
    message = mistake("generate", f"--model={last}", "--prompt=a")
    assert "last.ckpt: it is damaged: the checksum of " in message
    assert "step6.ckpt is whole." in message
    assert "is damaged" in mistake("fit", "--ckpt_path=last", *CALM)
