"""A run folder of version 0.1.0, stopped in the middle, goes on and is read like one of today.

`old_run/` holds the run as that version left it (without report.html, which is written anew), and
the text that it was trained on.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from gpt2_lightning.checkpoint import FORMAT, read_checkpoint, read_notes
from gpt2_lightning.cli import main
from gpt2_lightning.run_folder import Run
from tests.command_line import CALM, Mistake, curves

OLD = Path(__file__).parent / "old_run"
STOPPED_AFTER, STEPS = 133, 264


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    shutil.copy(OLD / "text.txt", tmp_path)
    return Path(shutil.copytree(OLD / "run", "lightning_logs/version_0"))


@pytest.mark.slow
def test_it_is_tested(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["test", f"--ckpt_path={old_run}", *CALM])
    figures = [float(word) for word in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
    assert 30 < figures[0] < 80  # perplexity; an untrained model has 298


@pytest.mark.slow
def test_it_goes_on_to_its_end(old_run: Path) -> None:
    main(["fit", "--ckpt_path=last", *CALM])
    facts = json.loads((old_run / "facts.json").read_text(encoding="utf-8"))
    assert facts["ended"] == "finished"
    assert facts["steps"]["trained"] == STEPS
    assert facts["best"]["step"] > STOPPED_AFTER
    columns = curves(old_run)
    assert columns["step"] == sorted(columns["step"])
    assert max(columns["step"]) == STEPS
    # it goes on from where it was, and not from the beginning
    after = [loss for step, loss in zip(columns["step"], columns["train/loss"], strict=False)]
    assert max(after[-10:]) < 4.5


def test_it_writes_text(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in (old_run, old_run / "checkpoints" / "last.ckpt"):
        main(["generate", f"--model={model}", "--prompt=the river", "--max_new_tokens=8"])
        assert capsys.readouterr().out.count("the river") == 3


@pytest.mark.parametrize(("which", "step"), [("best", 132), ("last", STOPPED_AFTER)])
def test_it_is_exported(
    old_run: Path, which: str, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", f"--model={old_run}", f"--which={which}", "--to=folder"])
    assert f", step {step}\n" in capsys.readouterr().out
    assert Path("folder/model.safetensors").is_file()


def test_it_is_reported(old_run: Path) -> None:
    main(["report", str(old_run)])
    page = (old_run / "report.html").read_text(encoding="utf-8")
    assert "50.84" in page  # the perplexity at step 132


def test_its_facts_of_before_the_best_had_a_step_are_read(old_run: Path) -> None:
    facts = json.loads((old_run / "facts.json").read_text())
    figures = facts.pop("best")["figures"]
    facts["outcome"]["best"] = figures
    (old_run / "facts.json").write_text(json.dumps(facts))
    assert Run(old_run).best_figures == figures
    assert Run(old_run).best_step == 132  # by its curves
    del facts["outcome"]["best"]
    (old_run / "facts.json").write_text(json.dumps(facts))
    assert Run(old_run).best_figures == facts["outcome"]["last"]


def test_its_checkpoints_are_read_by_the_present_names(old_run: Path) -> None:
    file = old_run / "checkpoints" / "last.ckpt"
    written = torch.load(file, weights_only=True)
    assert "format" not in written
    for read in (read_checkpoint(file), read_notes(file)):
        assert read["format"] == FORMAT
        assert read["tokenizer_files"] == written["WikiTextDataModule"]["tokenizer_files"]
        assert read["trainer_settings"]["schedule_steps"] == STEPS
        assert read["trainer_settings"]["processes"] == 1
        assert len(read["trainer_settings"]) == len(written["trainer_settings"])
        states, before = read["callbacks"], written["callbacks"]
        assert states["run.best"]["best"]["step"] == 132
        assert states["run.facts"] == before["Facts"]
        assert states["run.figures"] == before["Outcome"]


def test_its_trainer_is_held_to_what_it_was(old_run: Path, mistake: Mistake) -> None:
    before = {file: file.read_bytes() for file in old_run.rglob("*") if file.is_file()}
    message = mistake("fit", f"--ckpt_path={old_run}", "--trainer.max_epochs=2", *CALM)
    assert "--trainer.max_epochs or max_steps (steps of the schedule)" in message
    assert f"trained with {STEPS}, now it is {STEPS // 2}" in message
    # nothing was begun: not even a file of events
    assert {file: file.read_bytes() for file in old_run.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_one_from_before_steps_could_be_left_out_goes_on(old_run: Path) -> None:
    last = old_run / "checkpoints" / "last.ckpt"
    old = torch.load(last, weights_only=True)
    del old["skipped_steps"], old["hyper_parameters"]["on_nonfinite"]
    torch.save(old, last)
    main(["fit", "--ckpt_path=last", "--model.on_nonfinite=skip", *CALM])
    assert torch.load(last, weights_only=True)["skipped_steps"] == 0


@pytest.mark.slow
def test_the_names_in_a_checkpoint_stay(old_run: Path, mistake: Mistake) -> None:
    """Where one of these changes, the format takes a new number, and `upgrade` a step."""
    main(["fit", f"--ckpt_path={old_run}", *CALM])
    last = old_run / "checkpoints" / "last.ckpt"
    written = torch.load(last, weights_only=True)
    assert written["format"] == 2
    assert {"hf_config", "tokenizer_files", "skipped_steps", "skipped_in_a_row"} <= written.keys()
    assert {"run.best", "run.facts", "run.figures"} == written["callbacks"].keys()
    assert written["trainer_settings"].keys() == {
        *("accumulate_grad_batches", "processes", "precision", "gradient_clip_val"),
        *("gradient_clip_algorithm", "limit_train_batches", "overfit_batches", "schedule_steps"),
    }
    torch.save(written | {"format": FORMAT + 1}, last)
    for words in (("generate", f"--model={last}", "--prompt=a"), ("fit", f"--ckpt_path={last}")):
        assert f"{last}: its format is {FORMAT + 1}, that of a later" in mistake(*words)
