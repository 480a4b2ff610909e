"""The tutorial as a notebook: it runs from download to web service, without a hub too."""

import re
from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed")

import nbformat  # may be absent, as what follows
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("tutorial.ipynb", "tutorial.zh.ipynb")
EXITED_WELL = "assert _exit_code == 0, _exit_code"  # of the last line that began with !
COMMAND = re.compile(r"^!python -m gpt2_lightning (?!fit )(.*)$", re.MULTILINE)


def read(name: str) -> nbformat.NotebookNode:
    text = (DOCS / name).read_text(encoding="utf-8")
    return cast(nbformat.NotebookNode, nbformat.reads(text, as_version=4))


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [str(cell.source) for cell in notebook.cells if cell.cell_type == "code"]


def test_both_have_the_same_code_and_no_output() -> None:
    ours, theirs = map(read, NAMES)
    assert code(ours) == code(theirs)
    assert [cell.cell_type for cell in ours.cells] == [cell.cell_type for cell in theirs.cells]
    for cell in [*ours.cells, *theirs.cells]:
        assert not cell.get("outputs")


def in_the_kernel(source: str) -> str:
    """Let a cell's commands but `fit` run in the kernel: a process of each one's own takes seconds.

    One that fails raises SystemExit, which ends the notebook.
    """
    return COMMAND.sub(r"main(shlex.split(f'''\1'''))", source)


@pytest.mark.slow
def test_it_runs_to_the_end_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(NAMES[0])
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            cell.source = in_the_kernel(cell.source)
        if cell.cell_type == "code" and cell.source.startswith("!"):
            cells.append(new_code_cell(EXITED_WELL))
    notebook.cells = cells
    first = next(cell for cell in cells if cell.cell_type == "code")
    first.source = f"import shlex\nfrom gpt2_lightning.cli import main\n{first.source}"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = [
        "".join(it.get("text", "") for it in cell.outputs if it.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source != EXITED_WELL
    ]
    assert "No hub in reach" in said[0]
    assert "Skipped: the weights and WikiText-2 come from a hub" in said[1]
    assert "report.html" in "".join(said)
    assert (tmp_path / "my-gpt2/model.safetensors").is_file()
    assert said[-1].strip()  # what the server wrote
