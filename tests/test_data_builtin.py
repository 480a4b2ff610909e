import sys
import types

import pytest

from gpt2_lightning.data.articles import is_title
from gpt2_lightning.data.sources import builtin_rows

TOPIC = """A "thing" statement
*******************

Wrapped prose goes on
over a line end.

Syntax
======

   thing ::= "thing" expression
   other ::= thing

Wrapped prose goes on
over a line end.
"""


def grams(rows: list[str]) -> list[tuple[str, ...]]:
    words = "".join(rows).split()
    return [tuple(words[at : at + 8]) for at in range(len(words) - 7)]


def test_held_out_text_does_not_stand_in_train() -> None:
    splits = {name: grams(rows) for name, rows in builtin_rows().items()}
    train, validation = set(splits["train"]), set(splits["validation"])
    for name in ("validation", "test"):
        assert sum(gram in train for gram in splits[name]) < 0.02 * len(splits[name])
    assert sum(gram in validation for gram in splits["test"]) < 0.02 * len(splits["test"])


def test_sizes_and_titles() -> None:
    splits = builtin_rows()
    sizes = {name: len("".join(rows).encode()) for name, rows in splits.items()}
    assert sizes["train"] > 250_000
    for name in ("validation", "test"):
        assert 0.04 < sizes[name] / sum(sizes.values()) < 0.09
        assert sum(map(is_title, splits[name])) >= 5
    for rows in splits.values():
        assert rows[1].startswith(" = ")
        assert all(row.startswith(" ") and row.endswith("\n") for row in rows)
        assert not any("\n" in row[:-1] for row in rows)


def test_rows_of_a_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2_lightning.data.sources.FEWEST_BYTES", 1)
    module = types.ModuleType("pydoc_data.topics")
    module.topics = {"thing": TOPIC}  # type: ignore[attr-defined] # a module made for this test
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)
    (rows,) = (rows for rows in builtin_rows().values() if rows)
    assert rows == [
        " \n",
        ' = A "thing" statement = \n',
        " \n",
        " Wrapped prose goes on over a line end.\n",
        " \n",
        " = = Syntax = = \n",
        " \n",
        '    thing ::= "thing" expression\n',
        "    other ::= thing\n",
    ]


def test_the_same_rows_each_time() -> None:
    assert builtin_rows() == builtin_rows()
