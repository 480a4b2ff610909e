"""Many runs in one process: what docs/sweeps.md shows."""

import gc
import re
import resource
import sys
import threading
from pathlib import Path

import pytest
import yaml

from gpt2_lightning.cli import main
from gpt2_lightning.run_folder import Run
from tests.command_line import CALM, fine_tuning

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs" / "sweeps.md"
TRIALS = 20


def memory() -> int:
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()[1]  # resident ones
    return int(pages) * resource.getpagesize()


def test_an_optuna_study(wiki_folder: Path, tiny_model: Path) -> None:
    optuna = pytest.importorskip(
        "optuna", reason="optuna is not installed: a package of the user's"
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    flags = (*fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_steps=2")
    settings: dict[str, dict[str, object]] = {}
    for flag in flags:
        *groups, name = flag.removeprefix("--").partition("=")[0].split(".")
        inner = settings
        for group in groups:
            inner = inner.setdefault(group, {})  # type: ignore[assignment]
        inner[name] = yaml.safe_load(flag.partition("=")[2])
    Path("sweep.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(shown.replace("n_trials=20", "n_trials=2"), str(DOCS), "exec"), names)
    study = names["study"]
    assert [it.state.name for it in study.trials] == 2 * ["COMPLETE"]  # type: ignore[attr-defined]
    assert len(list(Path("lightning_logs").glob("trial_*/report.html"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="its memory is read from /proc")
def test_twenty_runs_outside_the_main_thread_leave_nothing_behind(
    wiki_folder: Path, tiny_model: Path
) -> None:
    """Each is what it would have been alone, and memory does not grow with them."""
    losses, held = [], []

    def study() -> None:
        for trial in range(TRIALS):
            rate = 1e-2 if trial in (0, TRIALS - 1) else 1e-4 * (trial + 1)
            flags = (*fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_steps=2")
            words = (f"--run_name=trial_{trial}", f"--model.learning_rate={rate:g}")
            main(["fit", *flags, *words, "--trainer.limit_val_batches=4"])
            figures = Run(Path("lightning_logs") / f"trial_{trial}").best_figures
            losses.append(figures["val/loss"])
            held.append(memory())

    thread = threading.Thread(target=study)
    thread.start()
    thread.join()
    assert len(losses) == TRIALS
    assert losses[0] == losses[-1]  # to the bit, whatever ran between them
    assert len(set(losses)) > TRIALS / 2
    assert held[-1] < 1.1 * held[2], held
