"""The command line, called in process, or in processes forked where all is imported."""

import csv
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch.utilities import rank_zero_only

from gpt2_lightning.cli import main

Mistake = Callable[..., str]  # the words of a command line -> the message
FitOnce = Callable[..., Path]  # flags of a run -> its folder

CALM = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
# small blocks and short samples, for texts and models of a test's size
SMALL = (
    "--data.block_size=16",
    "--data.batch_size=2",
    "--trainer.log_every_n_steps=1",
    "--model.sampling.max_new_tokens=4",
)


def fit(*words: str) -> Path:
    """Fit on a CPU without a progress bar; return the run folder."""
    before = set(Path("lightning_logs").glob("*"))
    main(["fit", *words, *CALM])
    (run,) = set(Path("lightning_logs").glob("*")) - before
    return run


def fine_tuning(text: Path, model: Path) -> tuple[str, ...]:
    """Return the flags that fine-tune a small model on a small text."""
    return (f"--model.pretrained={model}", f"--data.source={text}", *SMALL)


def curves(run: Path) -> dict[str, list[float]]:
    """Return the columns of a run's metrics.csv, empty cells left out."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# A process that only imports, and is forked for each that is asked of it; the imports of a plain
# start take most of its time. It has computed nothing, so no thread of torch's is lost in a fork.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *(f"gpt2_lightning.fit.{name}" for name in ("train", "finish", "settings")),
        *(f"gpt2_lightning.{name}" for name in ("export.hf_folder", "report.page")),
        "torch.distributed.checkpoint",
    ]
)


def run_forked(
    *words: str, processes: int = 1, call: Callable[[list[str]], None] = main
) -> "subprocess.CompletedProcess[str]":
    """Run a command in one process, or in those of a ddp run, as torchrun and srun start them.

    How Lightning itself starts the others of a run, `tests.test_fit_distributed.run` shows.

    Args:
        words: After the program's name.
        processes: How many.
        call: What is called with the words.

    Returns:
        What all have said, and the code with which the first ended.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with TemporaryDirectory() as folder:
        screen = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        started = []
        for rank in range(processes):
            place = {**shared, "LOCAL_RANK": str(rank)} if processes > 1 else {}
            given = (call, words, {**os.environ, **place}, os.getcwd(), screen)
            started.append(FORKS.Process(target=_forked, args=given))
            started[-1].start()
        for process in started:
            process.join(300)
        ended = [process.exitcode for process in started]
        for process in started:
            process.kill()  # one that still runs
            process.join()
        said = [Path(file).read_text(encoding="utf-8") for file in screen]
    assert None not in ended, said
    code = ended[0]
    assert code is not None
    return subprocess.CompletedProcess(words, code, *said)


def _forked(
    call: Callable[[list[str]], None],
    words: tuple[str, ...],
    environment: dict[str, str],
    folder: str,
    screen: list[str],
) -> None:
    for stream, file in zip((sys.stdout, sys.stderr), screen, strict=True):
        with open(file, "a", encoding="utf-8") as written:
            os.dup2(written.fileno(), stream.fileno())
    run_here(call, words, environment, folder)


def run_here(
    call: Callable[[list[str]], None],
    words: tuple[str, ...],
    environment: dict[str, str],
    folder: str,
) -> None:
    """Call what `run_forked` was given in this process, in the caller's environment and folder."""
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["gpt2_lightning", *words]
    # Lightning takes it when it is imported; the attribute of a function
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))  # type: ignore[attr-defined]
    call(list(words))
