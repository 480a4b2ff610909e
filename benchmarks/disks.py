"""Runs that are killed while they write, and runs whose disk is full: what is left of each.

``python -m benchmarks.disks kills --folder /dev/shm/disks`` sends SIGKILL in the middle of writing
checkpoints, each time to the run that goes on from the one before, and compares the end with a run
that nobody killed. ``python -m benchmarks.disks full --folder /tmp/disks`` (as root, on Linux)
mounts disks too small for a run, and then makes room.

Everything is imported once; each run is a child of this process. The folder of the runs should be
on another file system than the temporary folder.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import gpt2_lightning.fit.train  # noqa: F401 - imported once, for all children
from gpt2_lightning.cli import main
from gpt2_lightning.generate.text_model import load_checkpoint

SEED = 12
STEPS = 40
WORDS = ("the", "old", "stone", "bridge", "near", "river", "town", "was", "built", "by", "two")
FIT = (
    "fit",
    "--data.source=text.txt",
    "--data.cache_dir=cache",
    "--data.vocab_size=300",
    "--data.block_size=32",
    "--data.batch_size=4",
    "--model.architecture={layers: 2, heads: 2, width: 192, positions: 64}",
    f"--trainer.max_steps={STEPS}",
    f"--model.schedule_steps={STEPS}",
    "--trainer.val_check_interval=1",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.limit_val_batches=1",
    "--samples.enabled=false",
    "--checkpoint.save_top_k=2",
)
CALM = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")


def start(folder: Path, *words: str) -> tuple[int, Path]:
    """Start a command in a child; return its process and the file of its screen."""
    screen = Path(tempfile.gettempdir()) / f"disks-{os.getpid()}.screen"  # on no full disk
    if (child := os.fork()) != 0:
        return child, screen
    code = 1
    try:
        os.chdir(folder)
        handle = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        main([*words, *CALM])
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(folder: Path, *words: str) -> tuple[int, str]:
    """Run a command to its end; return its exit code and its screen."""
    child, screen = start(folder, *words)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), screen.read_text(errors="replace")


def prepare(folder: Path) -> None:
    """Write the text."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=20)) for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))


def kill_while_writing(child: int, checkpoints: Path, number: int, delay: float) -> str | None:
    """Send SIGKILL once a number of partial files have been seen, after a delay in seconds.

    Returns:
        The partial file that was being written; None if the child had ended before.
    """
    before, seen = set(os.listdir(checkpoints)), set[str]()  # the last kill has left one
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        seen |= {name for name in os.listdir(checkpoints) if name.endswith(".partial")} - before
        if len(seen) >= number:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left = [name for name in os.listdir(checkpoints) if name in seen]
            return left[0] if left else "between two files"
    return None


def kills(folder: Path, count: int) -> None:
    """Kill runs that go on from each other, and compare their end with that of a whole run."""
    chance = random.Random(SEED)
    whole, killed = folder / "whole", folder / "killed"
    for place in (whole, killed):
        prepare(place)
    assert finish(whole, *FIT)[0] == 0
    assert finish(killed, *FIT, "--trainer.max_steps=1")[0] == 0
    run = Path("lightning_logs/version_0")
    checkpoints = killed / run / "checkpoints"
    again = ("fit", "--ckpt_path=last", f"--trainer.max_steps={STEPS}")
    in_the_middle = gone_on = steps = 0
    for _ in range(count):
        child, screen = start(killed, *again)
        number, delay = chance.choice((1, 2, 3, 4)), chance.choice((0, 0, 0.001, 0.003))
        left = kill_while_writing(child, checkpoints, number, delay)
        said = screen.read_text(errors="replace")
        found = re.search(r"Going on after step (\d+)", said)
        if left is None or found is None:
            print(f"not gone on, or ended early: {said[-600:]}")
            continue
        gone_on += 1
        steps = int(found[1])
        in_the_middle += left.endswith(".partial")
    code, said = finish(killed, *again)
    ours, theirs = (
        torch.load(place / run / "checkpoints" / "last.ckpt", weights_only=True)
        for place in (killed, whole)
    )
    same = all(
        torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items()
    )
    over = [file.name for file in (killed / run).rglob("*.partial")]
    print(
        f"{count} SIGKILLs, {in_the_middle} of them with a checkpoint half written: {gone_on} of "
        f"{count} went on, the last after step {steps}; then the run ended with code {code} at "
        f"step {ours['global_step']}; weights equal to the run that was not killed: {same}; left "
        f"over: {over or 'nothing'}"
    )


@contextmanager
def small_disk(place: Path, megabytes: float) -> Iterator[None]:
    """Mount a disk of so many megabytes."""
    place.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def full(folder: Path, count: int) -> None:
    """Run on disks that are too small, look at what is left, make room and go on."""
    chance = random.Random(SEED)
    prepare(folder / "text")
    assert finish(folder / "text", *FIT)[0] == 0  # and what it needs is in its cache
    needed = sum(file.stat().st_size for file in (folder / "text").rglob("*") if file.is_file())
    whole = 0
    for number in range(count):
        megabytes = needed / 1e6 * chance.uniform(0.3, 0.98)
        place = folder / f"disk{number}"
        with small_disk(place, megabytes):
            work = place / "work"
            prepare(work)
            shutil.copytree(folder / "text" / "cache", work / "cache")
            code, said = finish(work, *FIT)
            run = work / "lightning_logs" / "version_0"
            files = sorted((run / "checkpoints").glob("*.ckpt"))
            loaded = [load_checkpoint(file) is not None for file in files]
            lines = said.splitlines()
            print(
                f"{megabytes:.1f} MB: exit code {code}, {len(loaded)} of {len(files)} checkpoints "
                f"load, {len(lines)} lines, {said.count('Traceback')} tracebacks: {lines[-1]}"
            )
            subprocess.run(["mount", "-o", "remount,size=200m", place], check=True)
            words = ("fit", "--ckpt_path=last") if files else FIT
            code, said = finish(work, *words)
            left = list(run.rglob("*.partial")) if files else []
            whole += code == 0 and not left
            if code != 0 or left:
                print(f"    then exit code {code}, left over {left}: {said[-500:]}")
    print(f"{whole} of {count} went on when there was room, or began anew where none was saved yet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "full"))
    parser.add_argument("--folder", type=Path, required=True, help="New, for the runs.")
    parser.add_argument("--count", type=int, help="How many: 60 kills, or 10 disks.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "kills":
        kills(options.folder.absolute(), options.count or 60)
    else:
        full(options.folder.absolute(), options.count or 10)
