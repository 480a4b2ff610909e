"""One command for a visit to a GPU: what is correct there, how fast, in how much memory.

    python -m benchmarks.gpu --minutes 9 --output gpu.json
    python -m benchmarks.gpu --output gpu.json --render docs/gpu.md

The steps of benchmarks.gpu_steps run one after the other, the cheapest and most valuable first,
each in a fresh process. Every figure is in the file as soon as it is known; a step that would not
end within the time is not begun, or is ended; a second call goes on with what is left, last of all
with what was ended; on another card or with another torch it refuses to. Where no GPU is,
--device cpu --size tiny tries the kit itself.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from gpt2_lightning.errors import UsageError
from gpt2_lightning.storage import write_text

SAVING = 2.0  # seconds for ending a process and writing what is known

Report = dict[str, Any]
Measure = Callable[[str, float], Report]  # a step's name, and the seconds that it has


def visit(
    needs: dict[str, float],
    output: Path,
    minutes: float,
    measure: Measure,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Take the steps that fit the time and are not in the file yet.

    Args:
        needs: Steps in their order, and the seconds that each needs at least.
        output: The file, which is written after each step.
        minutes: For all of them.
        measure: Takes a step.
        clock: Seconds.

    Returns:
        What is in the file: for each step its figures, or why there are none.
    """
    ends = clock() + minutes * 60
    found: Report = json.loads(output.read_text()) if output.exists() else {"steps": {}}
    # what was begun before without success would take the time of what was not begun yet
    for name in sorted(needs, key=lambda name: "seconds" in found["steps"].get(name, {})):
        seconds = needs[name]
        if "figures" in found["steps"].get(name, {}):
            continue
        left = ends - clock() - SAVING
        if left < seconds:
            found["steps"].setdefault(name, {"left": f"needs {seconds:.0f} s"})
            continue
        began = clock()
        found["steps"][name] = measure(name, left) | {"seconds": round(clock() - began, 1)}
        write_text(output, json.dumps(found, indent=2) + "\n")
        print(name, json.dumps(found["steps"][name]), flush=True)
    found["steps"] = {name: found["steps"][name] for name in needs}
    write_text(output, json.dumps(found, indent=2) + "\n")
    return found


def check_same_visit(before: Report, now: Report, output: Path) -> None:
    """See that a file was begun with the same flags, card and torch, and so can be gone on with.

    Raises:
        UsageError: If it was not.
    """
    for key, value in now.items():
        if key in before and before[key] != value:
            raise UsageError(
                f"--output {output}: its {key} is {before[key]}, and here it is {value}: figures "
                "of both would lie in one file. Give another --output."
            )


def in_a_process(words: list[str], name: str, seconds: float) -> Report:
    """Take a step in a fresh process, which is ended when its time is over."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *words, f"--step={name}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its own processes can be ended with it
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        found = [line for line in output.splitlines() if line.startswith("{")]
        so_far = {"so far": json.loads(found[-1])} if found else {}
        return {"left": f"was not done within {seconds:.0f} s"} | so_far
    if process.returncode:
        return {"error": "\n".join(errors.strip().splitlines()[-12:])}
    return {"figures": json.loads(output.splitlines()[-1])}


MEASURED = "## Measured"  # of the page: what stands before this heading is kept


def rendered(found: Report, page: str) -> str:
    """Return a page of the documentation with the figures at its end.

    Args:
        found: What `visit` returned.
        page: The page so far.
    """
    lines = [
        page.split(MEASURED)[0].rstrip(),
        "",
        MEASURED,
        "",
        f"On {found.get('machine', 'an unknown machine')}, by",
        f"`python -m benchmarks.gpu {' '.join(found.get('flags', []))}`.",
    ]
    for name, step in found["steps"].items():
        lines += ["", f"### {name}", ""]
        figures = step.get("figures") or step.get("so far")
        if "figures" not in step:
            lines += [f"Not measured{' whole' if figures else ''}: {_why(step)}.", ""]
        if figures:
            lines += ["| | |", "|---|---|"]
            lines += [f"| {key} | {_plain(value)} |" for key, value in figures.items()]
        if "error" in step:
            lines += ["```", step["error"], "```"]
    return "\n".join(lines).rstrip() + "\n"


def _why(step: Report) -> str:
    return str(step.get("left") or "it failed")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value)


def main(
    output: Path = Path("gpu.json"),
    minutes: float = 9.0,
    device: str = "cuda",
    size: str = "small",
    render: Path | None = None,
    step: str | None = None,
) -> None:
    """Measure what fits the time, or write the page.

    Args:
        output: JSON file of the figures; one that is there is gone on with.
        minutes: For the whole command.
        device: ``cuda``; ``cpu`` tries the kit.
        size: Of the model: ``small`` is GPT-2 124M; ``tiny`` tries the kit.
        render: Write this page from the file, and measure nothing.
        step: Take this step alone, and print its figures as JSON.
    """
    if render is not None:
        page = render.read_text(encoding="utf-8") if render.exists() else "# On a GPU\n"
        write_text(render, rendered(json.loads(output.read_text()), page))
        return
    # here, since torch need not be imported for the page
    from benchmarks.gpu_steps import STEPS, Setting

    setting = Setting(device=device)
    if size == "tiny":
        setting = Setting(device, size, block_size=64, batch_sizes=(2, 4), steps=6, seconds=8.0)
    if step is not None:
        take, _ = STEPS[step]
        print(json.dumps(take(setting)))
        return
    words = [f"--device={device}", f"--size={size}"]
    begun = {"flags": words, "machine": setting.name()}
    before = json.loads(output.read_text()) if output.exists() else {"steps": {}}
    check_same_visit(before, begun, output)
    write_text(output, json.dumps(before | begun))
    needs = {name: seconds for name, (_, seconds) in STEPS.items()}
    visit(needs, output, minutes, lambda name, left: in_a_process(words, name, left))


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except UsageError as mistake:
        raise SystemExit(str(mistake)) from None
