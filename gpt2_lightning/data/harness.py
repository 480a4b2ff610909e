r"""WikiText as lm-evaluation-harness reads it: articles detokenised, words counted by its rule.

The rules are the harness' own, so that its figures can be compared with: they are applied to a
whole article, in this order, and lose text in places (``N`` becomes 1; a pair of apostrophes far
apart is taken for quotation marks).

Reference: https://github.com/EleutherAI/lm-evaluation-harness, ``lm_eval/tasks/wikitext``,
version 0.4.13.
"""

import re

# What is looked for, and what takes its place; a pattern where the rule is one.
RULES: tuple[tuple[str | re.Pattern[str], str], ...] = (
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), "/'[0-9]/"),  # meant for years such as '80, it matches no text
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenize_article(article: str) -> str:
    """Undo WikiText's tokenisation of one whole article, by the harness' rules."""
    for wanted, instead in RULES:
        if isinstance(wanted, str):
            article = article.replace(wanted, instead)
        else:
            article = wanted.sub(instead, article)
    return article
