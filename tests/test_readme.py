"""What a reader types works: commands of README and docs parse, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import constants

from gpt2_lightning.cli import main

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {file: file.read_text(encoding="utf-8") for file in FILES}
README = TEXTS[ROOT / "README.md"]
ORIGINALS = {  # of the Chinese pages
    file: file.with_name(re.sub(r"\.zh(-CN)?\.md$", ".md", file.name))
    for file in FILES
    if ".zh" in file.name
}


def commands(text: str) -> list[str]:
    """Return the command lines of a document's code blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" # ")[0].strip() for line in lines if line and line[0] not in "#"]


OURS = sorted(
    {
        line[line.index("python -m gpt2_lightning") :]
        for text in TEXTS.values()
        for line in commands(text)
        if "python -m gpt2_lightning" in line
    }
)


def blocks(text: str) -> list[str]:
    """Return the code blocks that are not a shell's, whose comments are translated."""
    return re.findall(r"^```(?!bash)(\w+\n.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("chinese", ORIGINALS, ids=lambda file: file.name)
def test_a_translation_has_the_same_code_and_sections(chinese: Path) -> None:
    theirs, ours = TEXTS[chinese], TEXTS[ORIGINALS[chinese]]
    assert commands(theirs) == commands(ours)
    assert blocks(theirs) == blocks(ours)
    assert [len(level) for level in re.findall(r"^(#+) ", theirs, re.MULTILINE)] == [
        len(level) for level in re.findall(r"^(#+) ", ours, re.MULTILINE)
    ]


def test_there_are_commands() -> None:
    assert len(OURS) >= 8


@pytest.mark.parametrize("line", OURS)
def test_a_command_parses(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)[3:]
    if words[0] == "report":  # it has no settings to print; it is its runs that are not there
        with pytest.raises(SystemExit):
            main(words)
        assert f"{words[1]}: there is no such" in capsys.readouterr().err
        return
    if words[0] == "fetch":  # nor has it; nothing is fetched without a network
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr().err
        assert "HF_HUB_OFFLINE forbids downloads" in said or "there is no such folder" in said
        return
    monkeypatch.chdir(ROOT)
    if "--ckpt_path" in words:  # a run that a test has not got
        at = words.index("--ckpt_path")
        assert len(words) > at + 1
        del words[at : at + 2]
    if "--help" not in words:
        words.append("--print_config")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code in (0, None)


def test_no_figure_is_left_to_be_filled_in() -> None:
    assert not [text for text in TEXTS.values() if "@@" in text or "TABLE" in text.split()]


def test_the_test_command_is_what_ci_runs() -> None:
    assert "make test" in commands(README)
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def anchors(text: str) -> set[str]:
    """Return the fragments by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_link_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[file]):
        name, _, anchor = target.partition("#")
        if not name.startswith("http"):
            other = (file.parent / name).resolve() if name else file
            assert other.exists(), target
            assert not anchor or anchor in anchors(TEXTS[other]), target


@pytest.mark.parametrize("file", ORIGINALS, ids=lambda file: file.name)
def test_a_chinese_page_says_which_links_are_in_english(file: Path) -> None:
    link = r"\[([^\]]*)\]\(([^)#\s]+\.(?:md|ipynb))(?:#[^)\s]*)?\)(.{0,5})"
    for words, target, behind in re.findall(link, TEXTS[file]):
        assert ("英文" in behind) == (".zh" not in target and words != "English"), target


def test_reading_order_names_files_that_exist() -> None:
    for name in re.findall(r"`(gpt2_lightning/[\w/]+\.py|configs/[\w/]+\.yaml)`", README):
        assert (ROOT / name).is_file(), name
