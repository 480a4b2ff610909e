"""One command line begins a run and goes on with it: --ckpt_path auto, torchrun, SLURM."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._C._distributed_c10d import HashStore  # torch.distributed has it untyped
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gpt2_lightning.cli import main
from gpt2_lightning.fit.processes import agree_on_prefix
from gpt2_lightning.parser import without_additions
from gpt2_lightning.run_folder import read_scalars
from tests.command_line import (
    CALM,
    SMALL,
    FitOnce,
    Mistake,
    fine_tuning,
    run_forked,
    run_here,
)

RUN = Path("lightning_logs/mine")
NAMED = ("--run_name=mine", "--ckpt_path=auto")
SIX_STEPS = ("--trainer.max_steps=6", "--trainer.val_check_interval=2", "--model.dropout=0.0")


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return found


def assert_equal(run: Path, whole: Path) -> None:
    ours, theirs = weights(run), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found, expected = read_scalars(run), read_scalars(whole)
    assert found.keys() == expected.keys()
    for name in ("train/loss", "val/loss"):
        assert {s: row.get(name) for s, row in found.items()} == {
            s: row.get(name) for s, row in expected.items()
        }


def sender(number: int, batch: int) -> str:
    arguments = f"init_args: {{number: {number}, batch: {batch}}}"
    return f"--trainer.callbacks=[{{class_path: tests.signals.SendSignal, {arguments}}}]"


@pytest.mark.slow
def test_the_same_line_begins_a_run_and_goes_on_with_it(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], fit_once: FitOnce
) -> None:
    line = ["fit", *fine_tuning(wiki_folder, tiny_model), *SIX_STEPS, *CALM]
    fit_once(*SIX_STEPS, "--run_name=whole")
    with pytest.raises(SystemExit):
        main([*line, *NAMED, sender(signal.SIGTERM, 2)])
    main([*line, *NAMED])
    assert "Going on after step 3" in capsys.readouterr().err
    assert_equal(RUN, Path("lightning_logs/whole"))
    events = len(list(RUN.glob("events*")))
    main([*line, *NAMED])  # a restart of a run that is over
    assert_equal(RUN, Path("lightning_logs/whole"))
    assert len(list(RUN.glob("events*"))) <= events + 1
    assert sorted(it.name for it in Path("lightning_logs").iterdir()) == ["mine", "whole"]


@pytest.mark.slow
def test_a_start_without_a_checkpoint_begins_again(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], fit_once: FitOnce
) -> None:
    line = ["fit", *fine_tuning(wiki_folder, tiny_model), *SIX_STEPS, *CALM]
    fit_once(*SIX_STEPS, "--run_name=whole")
    shutil.copytree("lightning_logs/whole", RUN)  # killed before its first checkpoint was whole
    for name in ("facts.json", "report.html"):
        (RUN / name).unlink()
    for file in (RUN / "checkpoints").iterdir():
        file.rename(file.with_name(f".{file.name}-01234567.partial"))
    (RUN / "checkpoints/.nfs1").touch()
    (RUN / "notes.txt").write_text("the user's own")
    main([*line, *NAMED, "--trainer.fast_dev_run=true"])
    assert (RUN / "config.yaml").exists()
    main([*line, *NAMED])
    assert "has no checkpoint yet, and the run begins" in capsys.readouterr().err
    assert_equal(RUN, Path("lightning_logs/whole"))
    assert len(list(RUN.glob("events*"))) == 1
    assert (RUN / "notes.txt").exists()
    assert not list(RUN.rglob("*.partial"))


@pytest.mark.slow
def test_auto_removes_no_checkpoint(wiki_folder: Path, tiny_model: Path, mistake: Mistake) -> None:
    line = ("fit", *fine_tuning(wiki_folder, tiny_model), *SIX_STEPS, *CALM, *NAMED)
    main(list(line))
    whole = {file: file.read_bytes() for file in (RUN / "checkpoints").iterdir()}
    for file, content in whole.items():
        file.write_bytes(content[:999])
    assert "none of its 2 checkpoints is whole. Nothing of it was changed" in mistake(*line)
    for file in whole:
        file.unlink()
    assert "it has ended, and kept no checkpoint" in mistake(*line)


@pytest.mark.slow
def test_what_a_line_adds_to_a_list_is_added_once(wiki_folder: Path, tiny_model: Path) -> None:
    more = ("--trainer.max_steps=2", *CALM, "--trainer.callbacks+=EarlyStopping")
    monitor = "--trainer.callbacks.monitor=val/loss"
    prompt = ("--samples.prompts", '["C+"]')
    for _ in range(2):
        main(["fit", *fine_tuning(wiki_folder, tiny_model), *more, monitor, *prompt, *NAMED])
    assert (RUN / "config.yaml").read_text().count("EarlyStopping") == 1


def test_additions_are_told_from_values() -> None:
    words = ["--a", "C+", "--b=d+", "--c+=1", "--d+", "2", "--e", "3"]
    assert without_additions(words) == ["--a", "C+", "--b=d+", "--e", "3"]


@pytest.mark.slow
def test_only_fit_takes_the_signal_of_a_requeue(
    wiki_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_scontrol(tmp_path, monkeypatch)
    main(["validate", *fine_tuning(wiki_folder, tiny_model), *CALM])
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL  # which ends the job at once


def test_a_start_of_torchrun_is_told_from_those_before() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=60))
    words: list[set[str]] = []
    for _ in range(3):  # what the earlier ones left stays in the store
        with ThreadPoolExecutor(3) as threads:
            words.append(set(threads.map(partial(agree_on_prefix, store, world_size=3), (2, 1, 0))))
    assert [len(word) for word in words] == [1, 1, 1]
    assert len(set.union(*words)) == 3


@pytest.mark.slow
def test_what_auto_cannot_do(
    wiki_folder: Path, tiny_model: Path, tmp_path: Path, mistake: Mistake
) -> None:
    line = ("fit", *fine_tuning(wiki_folder, tiny_model), *CALM)
    assert "Give it one: --run_name NAME" in mistake(*line, "--ckpt_path=auto")
    assert "one folder" in mistake(*line, "--run_name=a/b", "--ckpt_path=auto")
    assert "--trainer.logger.version x names another folder" in mistake(
        *line, "--trainer.logger=CSVLogger", "--trainer.logger.version=x", *NAMED
    )
    assert "--checkpoint.dirpath" in mistake(*line, *NAMED, "--checkpoint.dirpath=elsewhere")
    assert "validate does neither" in mistake("validate", *line[1:], "--ckpt_path=auto")
    (tmp_path / "auto.yaml").write_text("ckpt_path: auto\n")
    assert "give it as --ckpt_path auto" in mistake(*line, "--config=auto.yaml", "--run_name=mine")


@pytest.mark.slow
def test_auto_refuses_another_tokenizer(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    line = ("fit", *fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=1", *CALM, *NAMED)
    main([*line, f"--data.tokenizer={tiny_model}"])
    main([*line, f"--data.tokenizer={tiny_model}"])  # the same one: it goes on
    assert f"was trained with {tiny_model}" in mistake(*line, "--data.tokenizer=gpt2")


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["false", "CSVLogger", "[TensorBoardLogger,CSVLogger]"])
def test_a_run_has_its_name_with_every_logger(
    wiki_folder: Path, tiny_model: Path, logger: str
) -> None:
    more = ("--trainer.max_steps=1", *CALM, f"--trainer.logger={logger}")
    for _ in range(2):
        main(["fit", *fine_tuning(wiki_folder, tiny_model), *more, *NAMED])
    assert (RUN / "checkpoints/last.ckpt").is_file()
    assert [it.name for it in Path("lightning_logs").iterdir()] == ["mine"]


def stub_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a scontrol on the PATH that notes its words; return the file of its notes."""
    notes, program = folder / "scontrol.txt", folder / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {notes}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    return notes


@pytest.mark.slow
@pytest.mark.parametrize("where", ["training", "validation", "sampling", "baseline"])
def test_slurm_is_asked_once_for_a_requeue(
    where: str,
    wiki_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fit_once: FitOnce,
) -> None:
    line = ["fit", *fine_tuning(wiki_folder, tiny_model), *SIX_STEPS, *CALM]
    fit_once(*SIX_STEPS, "--run_name=whole")
    notes = stub_scontrol(tmp_path, monkeypatch)
    signalled = "--trainer.callbacks=[{class_path: tests.signals.SendSignalIn, init_args: "
    signalled += f"{{number: {int(signal.SIGUSR1)}, place: {where}}}}}]"
    with pytest.raises(SystemExit) as stopped:
        main([*line, *NAMED, signalled])
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert notes.read_text() == "requeue 4711\n"
    assert not list(Path().rglob("hpc_ckpt*"))
    main([*line, *NAMED])
    assert notes.read_text() == "requeue 4711\n"
    assert_equal(RUN, Path("lightning_logs/whole"))


@pytest.mark.slow
def test_a_requeue_that_fails_is_said(
    wiki_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    notes = stub_scontrol(tmp_path, monkeypatch)
    (tmp_path / "bin/scontrol").write_text('#!/bin/sh\necho "no such job" >&2; exit 1\n')
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(SystemExit):
        main(
            [
                *("fit", *fine_tuning(wiki_folder, tiny_model), *SIX_STEPS, *CALM, *NAMED),
                sender(signal.SIGUSR1, 2),
            ]
        )
    assert not notes.exists()
    assert "scontrol requeue 12_3 failed (code 1: no such job)" in capsys.readouterr().err


def torchrun(*words: str, processes: int) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[1]
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    return subprocess.run(
        [sys.executable, *launcher, "-m", "gpt2_lightning", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def restarting_agent(*words: str, restarts: int, logs: Path) -> str:
    """Run a command in two processes, forked by the agent that torchrun is a command line of.

    Returns:
        What they have said on standard error.
    """
    settings = LaunchConfig(
        *(1, 1, 2),  # nodes, and processes of each
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=restarts,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )
    elastic_launch(settings, run_here)(main, words, dict(os.environ), str(Path.cwd()))
    return "".join(file.read_text(encoding="utf-8") for file in logs.rglob("stderr.log"))


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_process_was_killed(
    wiki_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    two = (*CALM, "--trainer.devices=2", "--trainer.strategy=ddp", *SMALL)
    given = (f"--model.pretrained={tiny_model}", f"--data.source={wiki_folder}", *SIX_STEPS)
    line = [*given, *two]
    whole = run_forked("fit", *line, "--run_name=whole", processes=2)
    assert whole.returncode == 0, whole.stderr
    killing = "{class_path: tests.signals.KillOnce, init_args: {batches: [1, 3, 4], rank: 1}}"
    line += ["--checkpoint.every_n_train_steps=2", f"--trainer.callbacks=[{killing}]"]
    said = restarting_agent("fit", *line, *NAMED, restarts=3, logs=tmp_path / "logs")
    assert sorted(it.name for it in Path().glob("killed_*")) == ["killed_1", "killed_3", "killed_4"]
    events = EventAccumulator(str(RUN), size_guidance={"scalars": 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [1, 2, 3, 4, 5, 6]  # none twice, though some were taken twice
    assert "Going on after step 4" in said
    assert "out of order" not in said
    assert_equal(RUN, Path("lightning_logs/whole"))
    assert sorted(it.name for it in Path("lightning_logs").iterdir()) == ["mine", "whole"]


@pytest.mark.slow
def test_another_number_of_processes_takes_the_same_blocks(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = (*CALM, *SMALL, "--trainer.accumulate_grad_batches=4", "--trainer.max_epochs=2")
    line = [f"--model.pretrained={tiny_model}", f"--data.source={wiki_folder}", *one]
    line += ["--model.dropout=0.0", "--data.batch_size=4"]
    main(["fit", *line, "--run_name=whole"])
    steps = len(read_scalars(Path("lightning_logs/whole"))) - 1
    main(["fit", *line, "--run_name=mine", f"--trainer.max_steps={steps // 3}"])
    go_on = ("fit", "--ckpt_path=lightning_logs/mine", *CALM)
    with pytest.raises(SystemExit):
        main([*go_on, "--trainer.max_steps=-1", "--trainer.accumulate_grad_batches=2"])
    assert "step of the checkpoint's run takes 4 micro-batches" in capsys.readouterr().err
    # the middle of an epoch, and over its end
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2")
    done = torchrun(*go_on, *two, f"--trainer.max_steps={2 * steps // 3}", processes=2)
    assert done.returncode == 0, done.stderr
    main([*go_on, "--trainer.max_steps=-1"])
    found, expected = read_scalars(RUN), read_scalars(Path("lightning_logs/whole"))
    assert steps > 6
    for name in ("train/loss", "train/tokens_seen", "train/epoch"):
        ours = {step: row[name] for step, row in found.items() if name in row}
        theirs = {step: row[name] for step, row in expected.items() if name in row}
        assert ours == pytest.approx(theirs, rel=1e-6)
