"""Exports that are killed: each is a child of one process, which prints what each left.

A child sends itself SIGKILL at a chosen one of its dealings with files in the folder.
"""

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers.modeling_utils
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2_lightning.cli import main

SEED = 20
EVENTS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree")


def export(run: Path, *words: str) -> None:
    with redirect_stdout(sys.stderr):
        main(["export", f"--model={run}", "--to=out", "--overwrite", *words])


def in_child(work: Callable[[], None]) -> int:
    """Return the signal that ended the child, 0 if none did."""
    if (child := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def watched(folder: Path, tell: Callable[[str], None]) -> None:
    """Tell of every dealing with files in a folder that Python knows of, before it happens."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            tell(event)

    sys.addaudithook(hook)


def killed_at(number: int, folder: Path, run: Path, *words: str) -> None:
    seen = 0

    def tell(event: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    watched(folder, tell)
    export(run, *words)


def killed_in_the_weights(folder: Path, run: Path, *words: str) -> None:
    def half(tensors: Any, filename: Any, *_: Any, **__: Any) -> None:
        content = safetensors.torch.save(tensors)
        Path(filename).write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    vars(transformers.modeling_utils)["safe_save_file"] = half
    export(run, *words)


def outcome(folder: Path, known: dict[str, torch.Tensor]) -> str:
    """Return which of the known models the folder holds, or that it is absent."""
    if not folder.exists():
        return "absent"
    AutoTokenizer.from_pretrained(folder)
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()["transformer.wte.weight"]
    for name, value in known.items():
        if found.dtype == value.dtype and torch.equal(found, value):
            return name
    return "wrong"


def events_of(folder: Path, run: Path) -> list[str]:
    """Return an export's dealings with files, and leave no export."""
    reader, writer = os.pipe()

    def count() -> None:
        seen: list[str] = []
        watched(folder, seen.append)
        export(run)
        os.write(writer, json.dumps(seen).encode())

    assert in_child(count) == 0
    events: list[str] = json.loads(os.read(reader, 2**16))
    return events


def kill_them_all(run: Path, home: Path) -> dict[str, list[tuple[str, str]]]:
    """Return what ought to be there and what is, for every export that was killed."""
    folder, old = home / "out", home / "old"

    def begin(over_another: bool) -> None:
        for left in (folder, *home.glob(".out-*")):
            shutil.rmtree(left, ignore_errors=True)
        if over_another:
            shutil.copytree(old, folder)

    export(run, "--dtype=bf16")  # and everything is imported
    folder.rename(old)
    found: dict[str, list[tuple[str, str]]] = {}
    known: dict[str, torch.Tensor] = {}
    for name, over_another in (("fresh", False), ("over another", True)):
        begin(over_another)
        events = events_of(home, run)
        new = AutoModelForCausalLM.from_pretrained(folder).state_dict()["transformer.wte.weight"]
        known = {"new": new, "old": new.bfloat16()}
        renames = [at for at, event in enumerate(events, 1) if event == "os.rename"]
        drawn = random.Random(SEED).sample(range(1, len(events) + 1), 10 if over_another else 2)
        moments = [*drawn, *renames, len(events)]  # the last is after the swap
        found[name] = []
        for moment in [*moments, None]:
            begin(over_another)
            if moment is None:
                ended = in_child(lambda: killed_in_the_weights(home, run))
            else:
                ended = in_child(lambda at=moment: killed_at(at, home, run))  # type: ignore[misc]
            assert ended == signal.SIGKILL, (moment, ended)
            before = "old" if over_another and (moment or 1) <= renames[0] else "absent"
            wanted = "new" if (moment or 1) > renames[-1] else before
            found[name].append((wanted, outcome(folder, known)))
    export(run)
    assert outcome(folder, known) == "new"
    return found


def print_outcomes(words: list[str]) -> None:
    """Print what each export left, of the run and in the folder that the words name."""
    os.chdir(words[1])
    print(json.dumps(kill_them_all(Path(words[0]), Path(words[1]))))
