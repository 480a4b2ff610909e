"""How a command starts quickly: imports without garbage collection, parameters read from source."""

import ast
import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef

command_began = time.monotonic()  # of `main`, at its newest call


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Keep the garbage collector out of imports, and what they bring out of its later rounds.

    torch, Lightning and transformers bring some million objects, none of them garbage. Rounds in
    between take a tenth of the time, and the round at the end of the process takes two seconds. In
    a process that has torch already, such as a program that calls `main`, nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()


def parameters(name: str) -> tuple[list[str], bool]:
    """Read what a class or function takes from its source file, without importing it.

    Args:
        name: The module and the name in it: ``lightning.pytorch.trainer.trainer.Trainer.fit``. A
            class stands for its ``__init__``, a dataclass for its fields.

    Returns:
        The names, without those of ``self``, ``*args`` and ``**kwargs``; and whether that is all
        it takes.

    Raises:
        LookupError: If the file or the name is not found there.
    """
    package, *path = name.split(".")
    spec = find_spec(package)
    folder = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    while path and (folder / path[0]).is_dir():
        folder /= path.pop(0)
    file = folder / f"{path[0]}.py"
    if len(path) < 2 or not file.is_file():
        raise LookupError(name)
    found: ast.Module | Definition = _parsed(file)
    for part in path[1:]:
        found = _member(found, part, name)
    if isinstance(found, ast.ClassDef):
        fields = [
            it.target.id
            for it in found.body
            if isinstance(it, ast.AnnAssign) and isinstance(it.target, ast.Name)
        ]
        if any("dataclass" in ast.unparse(it) for it in found.decorator_list):
            return fields, not found.bases
        found = _member(found, "__init__", name)
    assert isinstance(found, ast.FunctionDef)
    given = found.args
    names = [it.arg for it in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [it for it in names if it != "self"], given.vararg is None and given.kwarg is None


@cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def _member(of: ast.AST, called: str, name: str) -> Definition:
    assert isinstance(of, ast.Module | Definition)
    for it in of.body:
        if isinstance(it, Definition) and it.name == called:
            return it
    raise LookupError(name)
