"""Runs that are killed while they write, and runs whose disk is full: what is left of each.

``python -m benchmarks.disks kills --folder /dev/shm/disks --processes 2`` sends SIGKILL at random
moments, most of them in the middle of writing checkpoints, starts the run again by the same line
(``--ckpt_path auto``) until it ends, and compares the end with a run that nobody killed.
``python -m benchmarks.disks full --folder /tmp/disks`` (as root, on Linux) mounts disks too small
for a run, and then makes room.

Everything is imported once; each run is a child of this process. A folder of
runs on another file system than the temporary folder is the harder case.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

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


def start(folder: Path, *words: str, processes: int = 1) -> tuple[list[int], Path]:
    """Start a command in children, as torchrun does; return them and rank 0's screen."""
    screen = Path(tempfile.gettempdir()) / f"disks-{os.getpid()}.screen"  # on no full disk
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        if (child := os.fork()) != 0:
            children.append(child)
            continue
        code = 1
        try:
            os.chdir(folder)
            target = screen if rank == 0 else screen.with_suffix(f".{rank}")
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
                sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                values = ranks | sizes | place | {"TORCHELASTIC_RUN_ID": "disks"}
                os.environ |= {name: str(value) for name, value in values.items()}
                # set from the environment when it was imported
                rank_zero_only.rank = rank  # type: ignore[attr-defined] # an attribute without a type
                words = (*words, f"--trainer.devices={processes}", "--trainer.strategy=ddp")
            main([*words, *CALM])
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return children, screen


def ends(children: list[int]) -> list[int]:
    """Wait for the end of all, and end those that are left as torchrun does; return their codes."""
    codes: dict[int, int] = {}
    lost_at = None
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            if (found := os.waitpid(child, os.WNOHANG)) != (0, 0):
                codes[child] = os.waitstatus_to_exitcode(found[1])
            elif lost_at is not None and time.monotonic() - lost_at > 30:
                os.kill(child, signal.SIGKILL)
        if lost_at is None and any(codes.values()):
            lost_at = time.monotonic()
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGTERM)
        time.sleep(0.01)
    return [codes[child] for child in children]


def finish(folder: Path, *words: str, processes: int = 1) -> tuple[int, str]:
    """Run a command to its end; return its exit code and its screen."""
    children, screen = start(folder, *words, processes=processes)
    return max(ends(children), key=abs), screen.read_text(errors="replace")


def prepare(folder: Path) -> None:
    """Write the text."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=20)) for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(lines))


def has_ended(child: int) -> bool:
    """Tell whether a child has ended, without taking its exit code away."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(children: list[int], checkpoints: Path, chance: random.Random, *, writing: bool) -> str:
    """Send SIGKILL to one of the processes of a run.

    Args:
        children: The processes, rank 0 first.
        checkpoints: Where rank 0 writes.
        chance: Draws the moment and, between two files, the process.
        writing: Whether to wait for a checkpoint that is being written, and kill rank 0.

    Returns:
        ``writing`` if a file was half written, ``elsewhere``, or ``ended``: before the moment.
    """

    def partial() -> set[str]:
        names = os.listdir(checkpoints) if checkpoints.is_dir() else []
        return {name for name in names if name.endswith(".partial")}

    before, seen = partial(), set[str]()  # the last kill has left one
    began, moment = time.monotonic(), chance.uniform(0, 4)
    number, delay = chance.choice((1, 2, 3, 4)), chance.choice((0, 0, 0.001, 0.003))
    while not has_ended(children[0]):
        seen |= partial() - before
        if writing and len(seen) >= number:
            time.sleep(delay)
            os.kill(children[0], signal.SIGKILL)
            return "writing" if partial() & seen else "elsewhere"
        if not writing and time.monotonic() - began > moment:
            os.kill(chance.choice(children), signal.SIGKILL)
            return "writing" if partial() - before else "elsewhere"
        time.sleep(0.0005)
    return "ended"


def kills(folder: Path, count: int, processes: int) -> None:
    """Kill runs and start them again by the same line, until they end; compare with a whole one."""
    chance = random.Random(SEED)
    whole, killed = folder / "whole", folder / "killed"
    for place in (whole, killed):
        prepare(place)
    assert finish(whole, *FIT, "--run_name=run", processes=processes)[0] == 0
    run = Path("lightning_logs/run")
    line = (*FIT, "--run_name=run", "--ckpt_path=auto")
    expected = torch.load(whole / run / "checkpoints/last.ckpt", weights_only=True)
    sent = {"writing": 0, "elsewhere": 0}
    runs = same = 0
    while sum(sent.values()) < count:
        children, screen = start(killed, *line, processes=processes)
        last = sum(sent.values()) + 1 == count
        how = kill(children, killed / run / "checkpoints", chance, writing=chance.random() < 0.6)
        codes = ends(children)
        if how != "ended":
            sent[how] += 1
            if not last:
                continue
            codes = [finish(killed, *line, processes=processes)[0]]
        found = torch.load(killed / run / "checkpoints/last.ckpt", weights_only=True)
        equal = found["global_step"] == STEPS and all(
            torch.equal(value, expected["state_dict"][name])
            for name, value in found["state_dict"].items()
        )
        left = [file.name for file in (killed / run).rglob("*.partial")]
        runs += 1
        same += equal and not left and not any(codes)
        if any(codes) or left or not equal:
            print(f"codes {codes}, left {left}, equal {equal}: {screen.read_text()[-900:]}")
        shutil.rmtree(killed / run)
    print(
        f"{processes} process(es): {sum(sent.values())} SIGKILLs, {sent['writing']} of them with a "
        f"checkpoint half written, over {runs} runs; {same} of {runs} ended at step {STEPS} with "
        "the weights of the run that was not killed, and nothing left over"
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
    parser.add_argument("--processes", type=int, default=1, help="Of a run that is killed.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "kills":
        kills(options.folder.absolute(), options.count or 60, options.processes)
    else:
        full(options.folder.absolute(), options.count or 10)
