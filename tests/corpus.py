"""Small made-up text in WikiText's manner."""

import random
from pathlib import Path

WORDS = [
    "the",
    "river",
    "a",
    "bridge",
    "of",
    "old",
    "stone",
    "and",
    "in",
    "1923",
    "town",
    "council",
    "@-@",
    "wide",
    "was",
    "built",
    "near",
    "by",
    "two",
    "engineers",
    "who",
    "had",
    "worked",
    "on",
    "railway",
    "it",
    "'s",
    "known",
    "for",
    "its",
    "arches",
    ",",
    "which",
    "are",
    "12",
    "@.@",
    "5",
    "metres",
    "high",
    "about",
    "3",
    "@,@",
    "000",
    "people",
    "cross",
    "every",
    "day",
    ";",
    "some",
    "call",
    "“",
    "lions",
    "”",
    "after",
    "statues",
]


def wiki_rows(*, articles: int, seed: int = 0, paragraphs: int = 3) -> list[str]:
    """Return rows as in the original WikiText archives: titles, blank rows, paragraphs."""
    chance = random.Random(seed)
    rows = []
    for article in range(articles):
        rows += [" \n", f" = Bridge {seed} {article} of stone = \n", " \n"]
        for _ in range(paragraphs):
            words = chance.choices(WORDS, k=chance.randint(8, 40))
            rows.append(f" {' '.join(words)} . \n")
    return rows


def hub_rows(rows: list[str]) -> list[str]:
    """Return the same rows as the Hub's copy has them: blank ones empty."""
    return ["" if not row.strip() else row for row in rows]


def write_wiki(where: Path) -> Path:
    """Write the folder wiki: wiki.train.raw, wiki.valid.raw and wiki.test.raw; return it."""
    folder = where / "wiki"
    folder.mkdir()
    for name, articles, seed in (("train", 24, 0), ("valid", 4, 1), ("test", 5, 2)):
        rows = "".join(wiki_rows(articles=articles, seed=seed))
        (folder / f"wiki.{name}.raw").write_text(rows, encoding="utf-8")
    return folder
