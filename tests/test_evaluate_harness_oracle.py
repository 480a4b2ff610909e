"""lm-evaluation-harness itself as the judge of `evaluate --protocol articles`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import FIGURES

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason='lm-evaluation-harness is not installed: pip install -e ".[harness]"',
)
def test_articles_equal_the_harness(wiki_folder: Path, tiny_model: Path) -> None:
    # in a process of its own: its libraries warn, and change logging
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.harness", f"--model={tiny_model}"),
            *(f"--source={wiki_folder}", "--subset=null", "--output=figures.json"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(Path("figures.json").read_text(encoding="utf-8"))
    # the articles are longer than the model's 64 positions: windows roll
    for figure in FIGURES:
        assert found["ours"][figure] == pytest.approx(found["harness"][figure], rel=1e-5)
