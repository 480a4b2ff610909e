"""``last.ckpt`` is the last state, and the best is one step wherever it is named."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_lightning.checkpoint import TRAINER_FLAGS
from gpt2_lightning.cli import main
from gpt2_lightning.export.model_card import find_origin
from gpt2_lightning.generate.text_model import load
from gpt2_lightning.report.tables import figure
from gpt2_lightning.run_folder import Run, find_checkpoint
from tests.command_line import CALM, Mistake, curves, fine_tuning, fit, run_forked

# four validations
EVERY_3 = (
    "--trainer.max_steps=12",
    "--model.schedule_steps=30",
    "--trainer.val_check_interval=3",
    "--samples.enabled=false",
)
# the loss falls and the highest is asked for: only the first validation improves on anything
NEVER_BETTER = ("--checkpoint.mode=max", "--model.learning_rate=3e-3", "--model.schedule=constant")
PAST_THE_BEST = (*EVERY_3, *NEVER_BETTER)


def content(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def best_file(run: Path) -> Path:
    (file,) = (run / "checkpoints").glob("best-*.ckpt")
    return file


def assert_one_best(run: Path, step: int, screen: str) -> None:
    """Every place that names a best names this step."""
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    assert facts["best"]["step"] == step
    assert content(best_file(run))["global_step"] == step
    assert Run(run).best_checkpoint() == best_file(run)
    assert find_checkpoint("best") == best_file(run)
    assert find_origin(str(run), "best").step == step
    assert find_origin(str(run / "hf"), "best").step == step
    assert Run(run).best_step == step
    ids = torch.arange(8)[None]
    ours, theirs = load(str(run)).model, load(str(best_file(run))).model
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    monitor, value = facts["best"]["monitor"], facts["best"]["value"]
    assert f"best: step {step}, the " in screen
    assert f" {monitor}, {figure(value)}" in screen
    (row,) = [row.split("│") for row in screen.splitlines() if row.startswith("│ best")]
    figures = facts["best"]["figures"]
    assert row[2].strip() == figure(figures["val/perplexity"])
    assert Run(run).hf_record() == {"file": best_file(run).name, "step": step}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"Best is step {step}, the " in page
    assert f" {monitor}, {figure(value)}, of all validations." in page
    table = Run(run).scalars[step]
    assert figures["val/loss"] == pytest.approx(table["val/loss"])
    main(["export", f"--model={run}", "--to=exported"])
    card = Path("exported/README.md").read_text(encoding="utf-8")
    assert f"{figures['val/perplexity']:,.4f}" in card
    assert f"{value:,.4f}" in card
    assert f"| optimizer steps | {step} of 30" in card


@pytest.mark.slow
def test_last_is_the_last_where_nothing_improves(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *PAST_THE_BEST)
    losses = curves(run)["val/loss"][1:]
    assert losses.index(max(losses)) == 0  # the very first validation
    assert content(run / "checkpoints/last.ckpt")["global_step"] == 12
    assert_one_best(run, 3, capsys.readouterr().out)
    last = load(str(run / "checkpoints/last.ckpt")).model
    main(["export", f"--model={run}", "--which=last", "--to=last"])
    ids = torch.arange(8)[None]
    assert torch.equal(load("last").model(ids).logits, last(ids).logits)
    assert not torch.equal(load(str(run)).model(ids).logits, last(ids).logits)
    # and it goes on from there, with the best that it had
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=15", *CALM])
    assert "Going on after step 12." in capsys.readouterr().err
    assert content(run / "checkpoints/last.ckpt")["global_step"] == 15
    assert content(best_file(run))["global_step"] == 3


@pytest.mark.slow
def test_a_killed_run_goes_on_after_its_newest_validation(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), "--trainer.max_epochs=4", *CALM)
    words = (*words, "--data.batch_size=28", "--samples.enabled=false", *NEVER_BETTER)
    killer = f"{{class_path: tests.signals.SendSignal, init_args: {{number: {int(signal.SIGKILL)}, "
    killer += "batch: 5, epoch: 2}}"
    killed = run_forked("fit", *words, f"--trainer.callbacks=[{killer}]")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = Path("lightning_logs/version_0")
    epoch = content(best_file(run))["global_step"]
    assert content(run / "checkpoints/last.ckpt")["global_step"] == 2 * epoch
    main(["fit", "--ckpt_path=last", "--trainer.callbacks=null", *CALM])
    assert f"Going on after step {2 * epoch}." in capsys.readouterr().err
    whole = fit(*words)
    ours, theirs = content(run / "checkpoints/last.ckpt"), content(whole / "checkpoints/last.ckpt")
    assert ours["global_step"] == theirs["global_step"] == 4 * epoch
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value)
    assert content(best_file(run))["global_step"] == epoch


ANOTHER = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {monitor: val/loss}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("monitor", "flags"),
    [
        ("val/loss", ()),
        ("val/perplexity", ("--checkpoint.monitor=val/perplexity",)),
        ("train/loss", ("--checkpoint.monitor=train/loss",)),
        ("val/loss", ("--checkpoint.mode=max",)),
        ("val/loss", ("--checkpoint.mode=max", ANOTHER)),
    ],
    ids=["val/loss", "val/perplexity", "train/loss", "max", "another ModelCheckpoint"],
)
def test_the_best_is_one_step(
    monitor: str,
    flags: tuple[str, ...],
    wiki_folder: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *EVERY_3, "--model.learning_rate=3e-3", *flags)
    screen = capsys.readouterr().out
    table = Run(run).scalars
    measured = {step: table[step][monitor] for step in (3, 6, 9, 12)}
    order = max if "--checkpoint.mode=max" in flags else min
    step = order(measured, key=measured.__getitem__)
    assert max(measured.values()) > min(measured.values())  # there is something to choose
    assert_one_best(run, step, screen)
    assert bool(list((run / "checkpoints").glob("epoch=*.ckpt"))) == (ANOTHER in flags)
    (run / "facts.json").unlink()  # as of a run of earlier versions: settings and curves tell
    assert Run(run).best_step == step


@pytest.mark.slow
def test_other_checkpoints_change_nothing_of_the_best(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "{class_path: ModelCheckpoint, init_args: {every_n_epochs: 1, save_top_k: -1}}"
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        *PAST_THE_BEST,
        f"--trainer.callbacks+={other}",
    )
    assert list((run / "checkpoints").glob("epoch=*.ckpt"))
    assert_one_best(run, 3, capsys.readouterr().out)
    assert content(run / "checkpoints/last.ckpt")["global_step"] == 12
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=15", *CALM])
    assert content(best_file(run))["global_step"] == 3


def test_another_last_is_refused(mistake: Mistake, wiki_folder: Path, tiny_model: Path) -> None:
    other = "{class_path: ModelCheckpoint, init_args: {save_last: true}}"
    words = (*fine_tuning(wiki_folder, tiny_model), *CALM, f"--trainer.callbacks+={other}")
    assert "Leave its save_last out" in mistake("fit", *words)


@pytest.mark.slow
def test_a_run_that_moved_keeps_its_best(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *PAST_THE_BEST)
    moved = Path("elsewhere/version_7")
    moved.parent.mkdir()
    shutil.move(run, moved)
    main(["fit", f"--ckpt_path={moved}", "--trainer.max_steps=15", *CALM])
    assert "best: step 3, the highest val/loss" in capsys.readouterr().out
    assert content(best_file(moved))["global_step"] == 3
    assert content(moved / "checkpoints/last.ckpt")["global_step"] == 15


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *PAST_THE_BEST)
    for file in (run / "checkpoints").glob("*.ckpt"):
        old = content(file)
        state = old["callbacks"].pop("run.best")
        best = state.pop("best")
        del state["mode"]
        key = "ModelCheckpoint{'monitor': 'val/loss', 'mode': 'max', 'every_n_train_steps': 0, "
        key += "'every_n_epochs': 1, 'train_time_interval': None}"
        old["callbacks"][key] = state
        old["callbacks"]["Outcome"] = old["callbacks"].pop("run.figures") | {
            "best": best["figures"]
        }
        old["callbacks"]["Facts"] = old["callbacks"].pop("run.facts")
        old["WikiTextDataModule"] = {"tokenizer_files": old.pop("tokenizer_files")}
        flags, kept = TRAINER_FLAGS, old["trainer_settings"]
        old["trainer_settings"] = {flags[name]: value for name, value in kept.items()}
        del old["format"], old["skipped_steps"], old["skipped_in_a_row"]
        torch.save(old, file)
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    del facts["best"]
    (run / "facts.json").write_text(json.dumps(facts))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["checkpoint"]["save_last"] = "link"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert Run(run).best_checkpoint() == best_file(run)
    capsys.readouterr()
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=15", *CALM])
    screen = capsys.readouterr()
    assert "callbacks used to create" not in screen.err
    assert_one_best(run, 3, screen.out)


@pytest.mark.slow
def test_without_a_best_the_last_is_the_model(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *PAST_THE_BEST, "--checkpoint.save_top_k=0")
    screen = capsys.readouterr().out
    assert "Last model:" in screen
    assert "│ best" not in screen
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert Run(run).best_step == 12
    assert "best, step" not in (run / "report.html").read_text(encoding="utf-8")
    ids = torch.arange(8)[None]
    last = load(str(run / "checkpoints/last.ckpt")).model
    assert torch.equal(load(str(run)).model(ids).logits, last(ids).logits)


@pytest.mark.slow
def test_what_is_no_number_is_never_the_best(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from gpt2_lightning.model.metrics import CrossEntropy

    monkeypatch.setattr(CrossEntropy, "compute", lambda self: torch.tensor(math.nan))
    run = fit(*fine_tuning(wiki_folder, tiny_model), *EVERY_3, "--model.on_nonfinite=skip")
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    screen = capsys.readouterr().out
    assert "--checkpoint.monitor val/loss: it is nan at step 3" in screen
    assert "Last model:" in screen


@pytest.mark.slow
def test_between_validations_the_last_state_is_renewed(wiki_folder: Path, tiny_model: Path) -> None:
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=7",
        "--trainer.accumulate_grad_batches=2",
        "--samples.enabled=false",
        "--checkpoint.every_n_train_steps=5",
        "--checkpoint.save_top_k=-1",
    )
    names = {file.name.partition("-val_loss")[0] for file in (run / "checkpoints").iterdir()}
    assert names == {"step5.ckpt", "best-step7", "last.ckpt"}
    saved = content(run / "checkpoints/step5.ckpt")
    assert saved["global_step"] == 5
    batches = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    assert batches == 10  # whole steps
    assert saved["callbacks"]["run.best"]["best"] is None


@pytest.mark.slow
def test_weights_alone_do_not_go_on(mistake: Mistake, wiki_folder: Path, tiny_model: Path) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=1")
    fit(*words, "--checkpoint.save_weights_only=true")
    message = mistake("fit", "--ckpt_path=last", *CALM)
    assert "last.ckpt holds weights alone (--checkpoint.save_weights_only true)" in message
    assert find_checkpoint("best").name.startswith("best-step1-")


@pytest.mark.parametrize(
    "flag",
    ["save_on_train_epoch_end=true", "save_on_exception=true", "every_n_train_steps=-1"],
)
def test_flags_that_would_be_ignored_are_refused(
    flag: str, mistake: Mistake, wiki_folder: Path, tiny_model: Path
) -> None:
    words = fine_tuning(wiki_folder, tiny_model)
    assert flag.partition("=")[0] in mistake("fit", *words, *CALM, f"--checkpoint.{flag}")


@pytest.mark.slow
def test_an_hf_folder_older_than_the_best_is_not_the_model(
    mistake: Mistake, wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *EVERY_3, "--model.learning_rate=3e-3")
    run = fit(*words, "--trainer.max_steps=6")
    assert json.loads((run / "hf/checkpoint.json").read_text())["step"] == 6
    shutil.copytree(run / "hf", "earlier")
    main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=12", *CALM])
    assert Run(run).newer_than_hf() is None
    shutil.rmtree(run / "hf")
    shutil.move("earlier", run / "hf")  # what a kill before the end leaves
    best = best_file(run)
    assert content(best)["global_step"] == 12
    capsys.readouterr()
    main(["generate", f"--model={run}", "--prompt=the river", "--max_new_tokens=2"])
    said = f"hf/ is of step 6, from before the run went on; its best is now {best.name} of step 12"
    assert capsys.readouterr().err.count(f"{said}, and is used.") == 1
    ids = torch.arange(8)[None]
    assert torch.equal(load(str(run)).model(ids).logits, load(str(best)).model(ids).logits)
    assert find_origin(str(run), "best").step == 12
    origin = find_origin(str(run / "hf"), "best")  # no figures of other weights
    assert (origin.step, origin.figures, origin.chosen) == (6, {}, {})
    message = mistake("fit", f"--model.pretrained={run}", f"--data.source={wiki_folder}", *CALM)
    assert said in message
    assert f"export --model {run} --to FOLDER" in message
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    assert Run(run).newer_than_hf() is None  # hf/ is all that is left


@pytest.mark.slow
def test_an_hf_folder_whose_checkpoint_was_removed_is_the_model(
    wiki_folder: Path, tiny_model: Path
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *PAST_THE_BEST)
    best_file(run).unlink()
    assert Run(run).newer_than_hf() is None


class Fail(Callback):
    """Ends a run as a kill would: nothing more is saved."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.place = epoch, batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End it."""
        if (trainer.current_epoch, batch_idx) == self.place:
            raise RuntimeError("ended here")


@pytest.mark.slow
def test_without_validation_each_epoch_is_saved(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        *fine_tuning(wiki_folder, tiny_model),
        "--data.batch_size=28",
        "--trainer.max_epochs=3",
    )
    words = (*words, "--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=0")
    whole = fit(*words)
    said = "last.ckpt is saved at the end of each epoch. --checkpoint.every_n_train_steps N saves"
    assert said in capsys.readouterr().out
    failing = "{class_path: tests.test_fit_checkpoints.Fail, init_args: {epoch: 2, batch: 3}}"
    with pytest.raises(RuntimeError, match="ended here"):
        fit(*words, f"--trainer.callbacks=[{failing}]")
    run = Path("lightning_logs/version_1")
    theirs = content(whole / "checkpoints/last.ckpt")
    saved = content(run / "checkpoints/last.ckpt")["global_step"]
    assert saved == 2 * theirs["global_step"] // 3
    capsys.readouterr()
    main(["fit", f"--ckpt_path={run}", "--trainer.callbacks=null", *CALM])
    assert f"Going on after step {saved}." in capsys.readouterr().err
    ours = content(run / "checkpoints/last.ckpt")
    assert ours["global_step"] == theirs["global_step"]
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("{step}-{val/los:.3f}",), "val/los is not measured. A name may hold epoch, step, val/p"),
        (("{step}-{val_loss:.3f}",), "val_loss is not measured. A name may hold epoch, step, va"),
        (("best-{step",), "it cannot be read"),
        (("best-{step:.3q}",), "it cannot be read"),
        (("runs/{step}",), "a slash would make a folder of each"),
        (("{step}{val/loss}", "auto_insert_metric_name=true"), "a slash would make a folder"),
        (("last-{step}",), "names that begin with last are those of the last state"),
        (("best-{val/loss:.1f}", "save_top_k=3"), "could have one name"),
        (("{step}-{val/bits_per_byte}",), "val/bits_per_byte is not measured (--data.cleaning tu"),
    ],
)
def test_names_that_would_not_be_true_are_refused(
    flags: tuple[str, ...], message: str, mistake: Mistake, wiki_folder: Path, tiny_model: Path
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), "--data.cleaning=tutorial", *CALM)
    asked = [f"--checkpoint.{flag}" for flag in (f"filename={flags[0]}", *flags[1:])]
    said = mistake("fit", *words, *asked)
    assert said.startswith("error: --checkpoint.filename")
    assert message in said


@pytest.mark.slow
def test_a_number_that_was_not_logged_is_said_where_others_may_log_it(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=2",
        "--samples.enabled=false",
        "--checkpoint.filename=best-{step}-{val/accuracy:.3f}",
        "--trainer.callbacks=[{class_path: LearningRateMonitor}]",
    )
    screen = capsys.readouterr().out
    assert "--checkpoint.filename: val/accuracy was not logged up to step 2, so" in screen
    assert "val/perplexity" in screen
    assert {file.name for file in (run / "checkpoints").iterdir()} == {"step2.ckpt", "last.ckpt"}
