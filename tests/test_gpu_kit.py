"""benchmarks.gpu on a CPU: its time limit, what a second call takes up, its page, its steps."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import check_same_visit, in_a_process, rendered, visit
from benchmarks.gpu_steps import STEPS, Setting
from gpt2_lightning.errors import UsageError

NEEDS = {"a": 10.0, "b": 100.0, "c": 20.0}


class Visit:
    """A machine whose steps take a known time."""

    def __init__(self, takes: dict[str, float]) -> None:
        self.now = 0.0
        self.takes = takes
        self.taken: list[tuple[str, float]] = []

    def measure(self, name: str, left: float) -> dict[str, Any]:
        """Take a step: it is ended when its time is over."""
        self.taken.append((name, left))
        self.now += min(self.takes[name], left)
        return {"figures": {"x": 1}} if self.takes[name] <= left else {"left": "was not done"}

    def __call__(self, output: Path, minutes: float) -> dict[str, Any]:
        """Visit."""
        steps: dict[str, Any] = visit(NEEDS, output, minutes, self.measure, lambda: self.now)
        return dict(steps["steps"])


def test_what_does_not_fit_is_left_for_the_next_call(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    machine = Visit({"a": 5, "b": 80, "c": 15})
    found = machine(output, minutes=1)
    assert [name for name, _ in machine.taken] == ["a", "c"]
    assert found["b"] == {"left": "needs 100 s"}
    assert found["a"] == {"figures": {"x": 1}, "seconds": 5}
    assert machine.now <= 60
    machine.taken.clear()
    assert machine(output, minutes=2)["b"] == {"figures": {"x": 1}, "seconds": 80}
    assert [name for name, _ in machine.taken] == ["b"]
    assert json.loads(output.read_text())["steps"].keys() == NEEDS.keys()


def test_a_step_that_takes_too_long_is_ended_and_the_visit_with_it(tmp_path: Path) -> None:
    machine = Visit({"a": 5, "b": 1e6, "c": 15})
    found = machine(tmp_path / "gpu.json", minutes=3)
    assert machine.taken == [("a", 178), ("b", 173)]
    assert machine.now <= 180
    assert found["b"] == {"left": "was not done", "seconds": 173}
    assert found["c"] == {"left": "needs 20 s"}
    machine.taken.clear()
    found = machine(tmp_path / "gpu.json", minutes=3)
    assert [name for name, _ in machine.taken] == ["c", "b"], "what was ended comes last"
    assert list(found) == list(NEEDS)
    assert found["c"]["figures"]


def test_figures_of_two_machines_do_not_mix(tmp_path: Path) -> None:
    before = {"flags": ["--device=cuda"], "machine": "card A with torch 2.11.0", "steps": {}}
    check_same_visit({"steps": {}}, before, Path("gpu.json"))
    check_same_visit(before, {**before}, Path("gpu.json"))
    with pytest.raises(
        UsageError, match=r"its machine is card A with torch 2\.11\.0, and here it is"
    ):
        check_same_visit(before, {"machine": "card B with torch 2.11.0"}, Path("gpu.json"))


def test_a_killed_visit_keeps_what_it_knows(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def measure(name: str, left: float) -> dict[str, Any]:
        if name == "b":
            raise Killed
        return {"figures": {"x": name}}

    output = tmp_path / "gpu.json"
    with pytest.raises(Killed):
        visit(NEEDS, output, 9, measure)
    assert json.loads(output.read_text())["steps"]["a"]["figures"] == {"x": "a"}


def test_the_page(tmp_path: Path) -> None:
    steps = {
        "machine": {"figures": {"card": "A", "by": {"8": {"tokens/s": 9}}, "not passed": []}},
        "xl": {"left": "needs 60 s"},
        "Trainer": {"left": "was not done within 9 s", "so far": {"tokens/s": 5}},
        "ours": {"error": "OSError: no"},
    }
    found = {"steps": steps, "flags": ["--device=cuda"], "machine": "A with torch 2.11"}
    page = rendered(found, "# On a GPU\n\nHow to.\n\n## Measured\n\nof old\n")
    assert page.startswith("# On a GPU\n\nHow to.\n\n## Measured\n\nOn A with torch 2.11, by\n")
    assert "of old" not in page
    assert "| card | A |\n| by | 8: tokens/s: 9 |\n| not passed | none |" in page
    assert "### xl\n\nNot measured: needs 60 s.\n" in page
    assert (
        "Not measured whole: was not done within 9 s.\n\n| | |\n|---|---|\n| tokens/s | 5 |" in page
    )
    assert "### ours\n\nNot measured: it failed.\n\n```\nOSError: no\n```" in page
    assert rendered(found, page) == page


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for the text's tokens, which all steps read."""
    return str(tmp_path_factory.mktemp("kit"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the other side's libraries, with which we compare
@pytest.mark.parametrize("name", ["machine", "ours", "bare loop", "host syncs", "generate", "xl"])
def test_a_step_runs_on_a_cpu(
    name: str, cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", cache)
    setting = Setting("cpu", "tiny", block_size=64, batch_sizes=(2,), steps=4)
    figures = STEPS[name][0](setting)
    json.dumps(figures)
    match name:
        case "ours" | "bare loop":
            assert figures["by micro-batch"]["2"]["tokens/s"] > 0
        case "machine":
            assert figures["TFLOP/s in float32"] > 0
        case "xl":
            assert figures["GB by plan"] > 0
        case "generate":
            assert set(figures) == {"ours, 1", "transformers, 1", "ours, 4", "transformers, 4"}


@pytest.mark.slow
def test_a_step_in_a_process_of_its_own() -> None:
    measure = partial(in_a_process, ["--device=cpu", "--size=tiny"])
    assert measure("machine", 100.0)["figures"]["torch"]
    assert measure("machine", 0.1) == {"left": "was not done within 0 s"}
    assert "Got value: x" in in_a_process(["--minutes=x"], "machine", 100.0)["error"]
