"""Imports point one way, and the map in docs/design.md names every file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gpt2_lightning"
MAP = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")

# From the bottom up: a folder or file may import from the layers below it, not from its own.
LAYERS = [
    {"errors"},
    {"startup", "storage", "untrusted"},
    {"logs", "parser", "pretrained", "checkpoint"},
    {"data", "model"},
    {"run_folder"},
    {"generate"},
    {"evaluate", "fetch", "report", "serve"},
    {"export"},
    {"fit"},
    {"inspect", "plan"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")


def part_of(module: str) -> str:
    return module.split(".")[1]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            if (node.module or "").startswith("gpt2_lightning."):
                yield str(node.module)
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("gpt2_lightning."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    module = ".".join(("gpt2_lightning", *file.relative_to(PACKAGE).with_suffix("").parts))
    here = part_of(module)
    for other in imported(ast.parse(file.read_text(encoding="utf-8"))):
        there = part_of(other)
        assert there == here or LAYER_OF[there] < LAYER_OF[here], f"{module} imports {other}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_the_map_names_every_file(file: Path) -> None:
    assert f" {file.name} " in MAP.replace(",", " ")


def test_package_files_are_empty_but_for_load() -> None:
    top = PACKAGE / "__init__.py"
    files = [file for file in PACKAGE.rglob("__init__.py") if file != top]
    assert all(file.stat().st_size == 0 for file in files)
    tree = ast.parse(top.read_text(encoding="utf-8"))
    assert set(imported(tree)) == {"gpt2_lightning.generate.text_model"}
    defined = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert defined == ["__getattr__"]


HEAVY = ("torch", "transformers", "lightning", "datasets", "huggingface_hub", "httpx2", "fastapi")


def loaded_by(code: str) -> tuple[list[str], str]:
    """Run code in a new process; return what it prints, heavy modules last, and its messages."""
    after = f"import sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    words = [sys.executable, "-c", f"{code}\n{after}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.slow
def test_importing_the_package_is_light() -> None:
    assert loaded_by("import gpt2_lightning") == (["[]"], "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--model=a", "--prompt=b", "--num_beams=2"], "--do_sample false"),
        (["evaluate", "--model=a", "--data.source=b", "--stride=0"], "--stride 0: must be >= 1"),
        (["evaluate", "--model=a"], "--data.source: no text is given"),
        (["export", "--model=a", "--too=c"], "Did you mean --to?"),
        (["report", "--outptu=c"], "Did you mean --output?"),
        (["serve", "--modle=a"], "Did you mean --model?"),
        (["fetch", "model", "a/b", "--too", "c"], "Did you mean --to?"),
    ],
    ids=" ".join,
)
def test_words_are_checked_before_anything_heavy_is_imported(
    words: list[str], message: str
) -> None:
    code = f"""
from gpt2_lightning.cli import main
for words in ({[words[0], "--help"]}, {words}):
    try: main(words)
    except SystemExit as end: print("code", end.code)
"""
    lines, said = loaded_by(code)
    assert "code 0" in lines
    assert lines[-2:] == ["code 2", "[]"]
    assert message in said


@pytest.mark.slow
def test_names_of_flags_are_checked_before_anything_heavy_is_imported() -> None:
    code = """
from gpt2_lightning.cli import main
for words in ("fit --trainer.nope 1", "plan --nope", "inspect --data.sorce a", "test --verbos 1"):
    try: main(words.split())
    except SystemExit as end: print("code", end.code)
"""
    lines, said = loaded_by(code)
    assert lines == ["code 2"] * 4 + ["[]"]
    assert said.count("there is no such flag. ") == 4


@pytest.mark.slow
def test_using_a_model_needs_none_of_lightning() -> None:
    code = """
import gc
from gpt2_lightning.startup import heavy_imports
with heavy_imports():
    assert not gc.isenabled()
    import gpt2_lightning.generate.text_model, gpt2_lightning.serve.app
    import gpt2_lightning.export.hf_folder, gpt2_lightning.export.model_card
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
    (collector, heavy), said = loaded_by(code)
    assert collector == "True True"
    assert "'transformers'" in heavy
    assert "lightning" not in heavy, said
