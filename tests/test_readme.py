"""What a reader types must work: every command of the README parses, and names what is there."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import constants

from gpt2_lightning.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
DOCS = [
    README,
    CHINESE,
    *(file.read_text(encoding="utf-8") for file in (ROOT / "docs").glob("*.md")),
]


def commands(text: str) -> list[str]:
    """Return the command lines of a document's code blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" # ")[0].strip() for line in lines if line and line[0] not in "#"]


OURS = sorted(
    {
        line[line.index("python -m gpt2_lightning") :]
        for text in DOCS
        for line in commands(text)
        if "python -m gpt2_lightning" in line
    }
)


def test_both_readmes_have_the_same_commands() -> None:
    assert commands(CHINESE) == commands(README)


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
        assert "HF_HUB_OFFLINE is set" in said or "there is no such folder" in said
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
    assert not [text for text in DOCS if "@@" in text or "TABLE" in text.split()]


def test_the_test_command_is_what_ci_runs() -> None:
    assert "make test" in commands(README)
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README + CHINESE))))
def test_a_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_reading_order_names_files_that_exist() -> None:
    for name in re.findall(r"`(gpt2_lightning/[\w/]+\.py|configs/[\w/]+\.yaml)`", README):
        assert (ROOT / name).is_file(), name
