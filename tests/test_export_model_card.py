import pytest
import yaml

from gpt2_lightning.export.model_card import Exported, Origin, model_card, public_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gpt2", "gpt2"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("/home/alice/books/", "books"),
        ("books/river.txt", "river.txt"),
        ("../books", "books"),
        (r"C:\alice\river.txt", "river.txt"),
        ("~/river", "river"),
    ],
)
def test_public_names(name: str, shown: str) -> None:
    assert public_name(name) == shown


def test_what_is_not_known_has_no_row() -> None:
    settings = {"data": {"source": "a|b`c", "block_size": 8, "blocks": "pad", "cleaning": "none"}}
    facts = {
        "steps": {"schedule": 1234},
        "data": {"train": {"articles": 1}, "validation": {"words": 0, "targets": 3000}},
        "cleaning": {"lossless": False},
        "machine": {"system": "Linux", "gpus": [], "cores": 4},
    }
    model = Exported('of "rivers"', "gpt2", 1, 2, 3, "fp32", license=None, language="no")
    text = model_card(model, Origin("x", settings=settings, facts=facts), [])
    assert yaml.safe_load(text.split("---")[1])["language"] == "no"
    assert 'model="of \\"rivers\\"")' in text
    table, recipe = (
        text.partition("## Data\n\n")[2].partition("\n\n## Metrics")[0].split("## Recipe")
    )
    assert table.splitlines() == [
        "|  |  |",
        "| --- | --- |",
        r"| source | `a\|b'c` |",
        "| cleaning | `none`, which loses text: figures on it are not comparable with published "
        "ones |",
        "| blocks | `pad`, 8 tokens each |",
        "",
        "| split | articles | words | bytes | tokens | predicted tokens |",
        "| --- | --- | --- | --- | --- | --- |",
        "| validation |  | 0 |  |  | 3,000 |",
        "",
    ]
    for row in (
        "| began with | random weights |",
        "| optimizer steps | those of the best of 1,234 |",
        "| dropout | the model's own |",
        "| machine | Linux, 4 cores |",
    ):
        assert row in recipe
    for unknown in ("peak learning rate", "seed", "versions", "gradient clipping"):
        assert unknown not in recipe
