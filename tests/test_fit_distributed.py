"""Two processes on a CPU are one process that takes the same global batches."""

import csv
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore  # torch.distributed has it untyped

from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.fit import processes
from gpt2_lightning.fit.processes import Heartbeat
from tests.command_line import CALM, SMALL, curves, fit, free_port, run_forked

pytestmark = pytest.mark.slow

TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", *CALM)
NO_DROPOUT = ("--model.dropout=0.0", "--model.attention_dropout=0.0")


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in processes of their own: ddp starts the program's own words again."""
    settings = {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    return subprocess.run(
        [sys.executable, "-m", "gpt2_lightning", *words],
        env=os.environ | settings | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def flags(text: Path, model: Path) -> tuple[str, ...]:
    return (f"--model.pretrained={model}", f"--data.source={text}", *SMALL, *NO_DROPOUT)


def test_two_processes_train_and_validate_as_one(wiki_folder: Path, tiny_model: Path) -> None:
    words = (
        *flags(wiki_folder, tiny_model),
        "--trainer.max_steps=50",
        "--model.learning_rate=1e-3",
    )
    one = fit(*words, "--data.batch_size=6")
    done = run("fit", *words, "--data.batch_size=3", *TWO)
    assert done.returncode == 0, done.stderr
    two = Path("lightning_logs/version_1")
    ours, theirs = curves(two), curves(one)
    assert len(theirs["train/loss"]) == 50
    assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-5)
    assert ours["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=1e-4)
    assert ours["train/tokens_seen"] == theirs["train/tokens_seen"]
    assert ours["val/perplexity"][0] == pytest.approx(theirs["val/perplexity"][0], rel=1e-6)
    assert ours["val/perplexity"] == pytest.approx(theirs["val/perplexity"], rel=1e-5)
    assert (two / "samples.jsonl").read_text().count("\n") == 18  # one process wrote them
    assert (two / "hf/model.safetensors").is_file()
    assert sum("Best model:" in line for line in done.stdout.splitlines()) == 1


def test_validation_sees_each_block_once(wiki_folder: Path, tiny_model: Path) -> None:
    with (wiki_folder / "wiki.valid.raw").open("a", encoding="utf-8") as stream:
        stream.write(" one more row , of some words " * 3 + "\n")
    data = WikiTextDataModule(str(wiki_folder), tokenizer=str(tiny_model), block_size=16)
    data.prepare(["validation"])
    data.setup("validate")
    assert len(data.split_blocks("validation")) % 2 == 1
    words = ("validate", *flags(wiki_folder, tiny_model), "--trainer.logger=CSVLogger")
    figures = []
    for number, more in ((1, ()), (2, TWO)):
        folder = Path(f"run{number}")
        save_dir = f"--trainer.logger.save_dir={folder}"
        done = run_forked(*words, *CALM, *more, save_dir, processes=number)
        assert done.returncode == 0, done.stderr
        with next(folder.rglob("metrics.csv")).open(encoding="utf-8", newline="") as stream:
            figures.append(next(csv.DictReader(stream)))
    for name in ("val/perplexity", "val/loss", "val/bits_per_byte"):
        assert float(figures[1][name]) == pytest.approx(float(figures[0][name]), rel=1e-6)


def test_prompts_keep_their_order(tmp_path: Path, tiny_model: Path) -> None:
    for count in (5, 1):
        (tmp_path / "prompts.txt").write_text("".join(f"river {n}\n" for n in range(count)))
        prompts = "--data.prompts=prompts.txt"
        words = ("predict", f"--model.pretrained={tiny_model}", *SMALL, prompts)
        outputs = []
        for number, more in ((1, ()), (2, TWO)):
            before = set(Path("lightning_logs").glob("*"))
            done = run_forked(*words, *CALM, *more, processes=number)
            assert done.returncode == 0, done.stderr
            (folder,) = set(Path("lightning_logs").glob("*")) - before
            outputs.append((folder / "predictions.jsonl").read_text())
        assert outputs[0] == outputs[1]
        assert outputs[0].count("\n") == count


def test_a_signal_to_one_process_stops_both_and_they_go_on(
    wiki_folder: Path, tiny_model: Path
) -> None:
    words = (f"--model.pretrained={tiny_model}", f"--data.source={wiki_folder}", *SMALL, *TWO)
    epoch = ("--trainer.max_epochs=1", "--data.batch_size=16", "--samples.enabled=false")
    sender = "{class_path: tests.signals.SendSignal, init_args: {number: 15, batch: 4, rank: 1}}"
    whole = run_forked("fit", *words, *epoch, processes=2)
    assert whole.returncode == 0, whole.stderr
    stopped = run("fit", *words, *epoch, f"--trainer.callbacks=[{sender}]")  # by Lightning
    assert stopped.returncode == 143, stopped.stderr
    assert Path("lightning_logs/version_1/hf/model.safetensors").is_file()
    again = ("fit", "--ckpt_path=last", "--trainer.callbacks=null", *TWO)
    gone_on = run_forked(*again, processes=2)
    assert gone_on.returncode == 0, gone_on.stderr
    ours, theirs = (
        torch.load(f"lightning_logs/version_{n}/checkpoints/last.ckpt", weights_only=True)
        for n in (1, 0)
    )
    assert ours["global_step"] == theirs["global_step"] > 5
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_is_named_by_the_other(
    wiki_folder: Path, tiny_model: Path, rank: int
) -> None:
    killing = f"init_args: {{number: {int(signal.SIGKILL)}, batch: 4, rank: {rank}}}"
    sender = f"{{class_path: tests.signals.SendSignal, {killing}}}"
    words = (*flags(wiki_folder, tiny_model), *TWO, "--trainer.max_steps=20")
    done = run("fit", *words, f"--trainer.callbacks=[{sender}]")
    assert done.returncode == (-signal.SIGKILL if rank == 0 else 1), done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: rank {rank} of 2 was lost: ")
    assert "--ckpt_path last goes on" in errors[0]


def test_a_process_that_falls_silent_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, ended = HashStore(), threading.Event()
    monkeypatch.setattr(processes, "HEARTBEAT_INTERVAL", 0.01)
    monkeypatch.setattr(processes, "HEARTBEAT_TIMEOUT", 0.2)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    for rank in range(3):
        store.set(str(rank), "0")
    watching, silent = Heartbeat(), Heartbeat()
    watching.watch(store, rank=0, world_size=3)
    silent.watch(store, rank=1, world_size=3)  # it gives signs of life, and hears none of rank 0
    watching.stop()
    assert ended.wait(60)
    silent.stop()
    assert "error: rank 0 of 3 was lost (no sign of life for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.source=nowhere.txt", "error: --data.source nowhere.txt"),
        ("--data.block_size=65", "error: --data.block_size 65"),
        ("--model.learning-rat=1", "error: --model.learning_rat: there is no such flag"),
    ],
)
def test_a_mistake_is_one_message_and_ends_all(
    wiki_folder: Path, tiny_model: Path, flag: str, message: str
) -> None:
    done = run("fit", *flags(wiki_folder, tiny_model), *TWO, flag)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert sum(line.startswith(message) for line in done.stderr.splitlines()) == 1, done.stderr
    assert not list(Path("lightning_logs").glob("*"))
