"""`inspect`: what the model will really see, through the command line, in process."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from gpt2_lightning.cli import main
from gpt2_lightning.data.articles import SplitName
from gpt2_lightning.data.batches import IGNORED, Batch, Blocks
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.evaluate.text import count_text
from gpt2_lightning.inspect.command import differences, show
from gpt2_lightning.inspect.findings import Findings, inspect_source
from gpt2_lightning.inspect.tokens import first_block
from tests.command_line import Mistake
from tests.corpus import wiki_rows

CHINESE = "河上的旧石桥是由两位曾在铁路上工作过的工程师建造的，人们每天都从桥上走过。\n" * 30


@pytest.fixture
def tokenizer_alone(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with the tokenizer of a model, and no weights."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def look(text: Path, model: Path, *words: str) -> None:
    main(["inspect", f"--data.source={text}", f"--model.pretrained={model}", *words])


@pytest.fixture
def figures(capsys: pytest.CaptureFixture[str]) -> Any:
    """Inspect with --json; return what stands on standard output, all of it."""

    def run(*words: Any) -> Any:
        capsys.readouterr()
        look(*words, "--json")
        return json.loads(capsys.readouterr().out)

    return run


def set_up(text: Path, model: Path, **settings: Any) -> WikiTextDataModule:
    data = WikiTextDataModule(str(text), tokenizer=str(model), **settings)
    data.prepare(["train", "validation", "test"])
    data.setup("fit")
    return data


def test_figures_are_of_what_fit_will_use(
    wiki_folder: Path, tokenizer_alone: Path, figures: Any
) -> None:
    found = figures(wiki_folder, tokenizer_alone, "--data.block_size=16")
    data = set_up(wiki_folder, tokenizer_alone, block_size=16)
    assert list(found["splits"]) == ["train", "validation", "test"]
    assert found["missing"] == found["taken"] == []
    for name, articles in (("train", 24), ("validation", 4), ("test", 5)):
        split = found["splits"][name]
        store, blocks = data.stores[cast(SplitName, name)], data.split_blocks(cast(Any, name))
        counts = count_text(data.splits([])[cast(SplitName, name)], by_article=True)
        assert split["original"]["articles"] == articles == store.manifest.articles
        assert split["original"]["words"] == store.manifest.words
        assert split["original"]["harness_words"] == counts.harness_words.sum()
        assert split["original"]["bytes"] == store.manifest.bytes
        assert split["vocabulary"]["tokens"] == store.manifest.tokens - articles - 1
        assert split["fill"]["blocks"] == len(blocks)
        assert split["fill"]["targets"] == store.manifest.tokens - 1
        assert split["fill"]["share_cut_off"] == 0
        assert split["lengths"]["units"] == articles
        assert split["cleaning"]["share_of_characters_lost"] == 0
        assert (split["overlap"] is None) == (name == "train")
    assert not Path("lightning_logs").exists()


def test_padding_is_counted_as_it_is_made(
    wiki_folder: Path, tiny_model: Path, figures: Any
) -> None:
    words = ("--data.blocks=pad", "--data.block_size=48", "--data.cleaning=tutorial")
    fill = figures(wiki_folder, tiny_model, *words)["splits"]["train"]["fill"]
    data = set_up(wiki_folder, tiny_model, blocks="pad", block_size=48, cleaning="tutorial")
    blocks = data.split_blocks("train")
    whole = blocks.batch(np.arange(len(blocks)))
    mask, targets = whole["attention_mask"].float(), whole["targets"] != IGNORED
    assert fill["share_used"] == pytest.approx(mask.mean().item())
    assert fill["share_padded"] == pytest.approx(1 - mask.mean().item())
    assert fill["share_masked"] == pytest.approx(1 - targets.float().mean().item())
    tokens = data.stores["train"].manifest.tokens
    assert fill["share_cut_off"] == pytest.approx(1 - mask.sum().item() / tokens)
    assert 0 < fill["share_cut_off"] < 1


@pytest.mark.parametrize("blocks", ["pack", "pad"])
def test_the_first_block_and_its_targets(
    wiki_folder: Path, tiny_model: Path, figures: Any, blocks: str
) -> None:
    words = (f"--data.blocks={blocks}", "--data.block_size=32", "--split=train")
    block = figures(wiki_folder, tiny_model, *words)["splits"]["train"]["first_block"]
    data = set_up(wiki_folder, tiny_model, blocks=blocks)
    rows = wiki_rows(articles=24)
    if blocks == "pack":
        ids = data.tokenizer("".join(rows[:8]))["input_ids"]
        ids = [data.tokenizer.eos_token_id, *ids][:33]
        assert block["input_ids"] == ids[:32]
        assert block["targets"] == ids[1:]
        assert block["attention_mask"] == [1] * 32
    else:
        ids = data.tokenizer(rows[1])["input_ids"]  # the first row is blank
        padding = 32 - len(ids)
        assert padding > 0
        assert block["input_ids"] == ids + [data.tokenizer.pad_token_id] * padding
        assert block["targets"] == ids[1:] + [IGNORED] * (padding + 1)
        assert block["attention_mask"] == [1] * len(ids) + [0] * padding
        assert block["text"] == rows[1]
        assert block["wanted"][len(ids) - 1] is None
    assert block["wanted"][:5] == block["inputs"][1:6]
    assert block["in_step"]


class OutOfStep:
    """Blocks whose targets are their inputs."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.targets = blocks.targets

    def __len__(self) -> int:
        return len(self.blocks)

    def target_counts(self, indices: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.int64]:
        """Return the targets of blocks."""
        return self.blocks.target_counts(indices)

    def batch(self, indices: np.typing.NDArray[np.int64]) -> Batch:
        """Gather blocks."""
        batch = self.blocks.batch(indices)
        return batch | {"targets": batch["input_ids"]}


def test_an_off_by_one_is_seen(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = set_up(wiki_folder, tiny_model, block_size=16)
    assert first_block(data, "train").in_step
    blocks = data.split_blocks("train")
    monkeypatch.setattr(data, "split_blocks", lambda split: OutOfStep(blocks))
    assert not first_block(data, "train").in_step


@pytest.fixture
def repeating(wiki_folder: Path) -> Path:
    """A folder whose training split has an article twice, and whose test split has it, too."""
    copied = "".join(wiki_rows(articles=24)[-6:])
    for split in ("train", "test"):
        with (wiki_folder / f"wiki.{split}.raw").open("a", encoding="utf-8") as stream:
            stream.write(copied)
    return wiki_folder


def test_copies_are_found(repeating: Path, tiny_model: Path, figures: Any) -> None:
    found = figures(repeating, tiny_model)
    train, validation, test = (found["splits"][name] for name in ("train", "validation", "test"))
    assert train["duplicates"]["articles"] == 1
    assert train["duplicates"]["examples"][0]["article"] == 25
    assert train["duplicates"]["examples"][0]["repeats"] == 24
    assert test["duplicates"]["articles"] == 0
    assert (validation["duplicates"]["in_training"], test["duplicates"]["in_training"]) == (0, 1)
    assert test["overlap"]["share"] > validation["overlap"]["share"] + 0.1
    assert test["overlap"]["n"] == 13
    assert "Bridge 0 23 of stone" in test["overlap"]["passage"]
    notes = " ".join(found["warnings"])
    assert "1 of the train split's 25 articles repeat an earlier one" in notes
    assert "1 of the test split's 6 articles are also in the training split" in notes
    assert "of the test split's 13-grams" in notes


def test_one_split_is_still_compared_with_the_training_split(
    repeating: Path, tiny_model: Path, figures: Any
) -> None:
    found = figures(repeating, tiny_model, "--split=test", "--ngram=5")
    assert list(found["splits"]) == ["test"]
    assert found["splits"]["test"]["duplicates"]["in_training"] == 1
    assert found["splits"]["test"]["overlap"]["n"] == 5


def test_a_source_without_a_training_split(
    wiki_folder: Path, tiny_model: Path, figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in wiki_folder.iterdir():
        if file.name != "wiki.test.raw":
            file.unlink()
    for words in ([], ["--split=test"]):
        found = figures(wiki_folder, tiny_model, *words)
        assert list(found["splits"]) == ["test"]
        assert found["missing"] == ["train", "validation"]
        assert found["splits"]["test"]["overlap"] is None
    look(wiki_folder, tiny_model)
    screen = " ".join(capsys.readouterr().out.split())
    assert "missing train and validation: no such split in this source" in screen
    assert "no train and no validation split, so fit would refuse it" in screen


def test_chinese_is_warned_of(tmp_path: Path, tiny_model: Path, figures: Any) -> None:
    (tmp_path / "zh.txt").write_text(CHINESE, encoding="utf-8")
    found = figures(tmp_path / "zh.txt", tiny_model)
    assert found["taken"] == ["validation", "test"]
    assert "The vocabulary does not suit this language" in found["warnings"][0]
    train = found["splits"]["train"]
    assert train["vocabulary"]["tokens_per_character"] > 1
    assert train["vocabulary"]["tokens_per_word"] is None
    shown = train["first_block"]
    assert "\ufffd" not in "".join([shown["text"], *shown["inputs"][1:-4]])
    assert f"{CHINESE[0]} (1/3)" in shown["inputs"]


def test_the_tutorials_length_and_the_marks_of_its_text(
    tmp_path: Path, tiny_model: Path, figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f" = Bridge {n} = \n the <unk> bridge of <unk> \n" for n in range(30))
    source = tmp_path / "wiki.train.raw"
    source.write_text(rows, encoding="utf-8")
    words = "--data.cleaning=tutorial", "--data.blocks=pad"
    found = figures(source, tiny_model, *words, "--split=train")
    (note,) = (note for note in found["warnings"] if "<unk>" in note)
    assert note.startswith("--data.cleaning tutorial turns the mark <unk> into the word 'unk'")
    look(source, tiny_model, *words, "--split=train")
    screen = " ".join(capsys.readouterr().out.split())
    assert f"Every row is {found['block_size']:,} tokens: " in screen
    assert f"{found['splits']['train']['fill']['blocks']} of train." in screen


def test_a_vocabulary_of_its_own_suits_chinese(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zh.txt").write_text(CHINESE, encoding="utf-8")
    source = f"--data.source={tmp_path / 'zh.txt'}"
    main(["inspect", source, "--data.vocab_size=400", "--data.block_size=16", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["tokenizer"] is None
    assert not any("vocabulary" in note for note in found["warnings"])


@pytest.mark.slow
def test_cleaners_side_by_side(
    wiki_folder: Path, tiny_model: Path, figures: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(wiki_folder, tiny_model, "--compare", "--data.cleaning=detokenize")
    assert found["cleaning"] == "detokenize"
    assert list(found["compare"]) == ["none", "detokenize", "tutorial"]
    lost = {
        name: one["splits"]["test"]["cleaning"]["share_of_punctuation_lost"]
        for name, one in found["compare"].items()
    }
    assert lost == {"none": 0, "detokenize": 0, "tutorial": 1}
    assert found["compare"]["detokenize"]["splits"] == found["splits"]
    look(wiki_folder, tiny_model, "--compare")
    screen = capsys.readouterr().out
    assert re.search(r"none +detokenize +tutorial", screen)
    assert re.search(r"punctuation lost +0\.0 % +0\.0 % +100\.0 %", screen)


@pytest.mark.parametrize("words", [(), ("--data.blocks=pad",), ("--compare",)])
def test_the_screen_is_plain_and_narrow(
    repeating: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    capsys.readouterr()
    look(repeating, tiny_model, "--data.block_size=16", "--data.cleaning=tutorial", *words)
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines[2:])) <= 80  # the first two name the source and the tokenizer
    assert any("repeats article 24 of the train split" in line for line in lines)
    assert any("Every target is the next position's input." in line for line in lines)


def printed(findings: Findings, data: WikiTextDataModule, encoding: str, **options: Any) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    console = Console(file=stream, width=80, highlight=False, markup=False, **options)
    show(console, {"tutorial": (findings, data)}, "tutorial")
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_other_terminals(wiki_folder: Path, tiny_model: Path) -> None:
    data = WikiTextDataModule(str(wiki_folder), tokenizer=str(tiny_model), cleaning="tutorial")
    (findings,) = inspect_source([data], ngram=13, samples=2)
    ascii_ = printed(findings, data, "ascii")
    assert re.search(r"\| -{5,} +\| +\d+\.\d %", ascii_)  # the histogram's bars
    assert "━" in printed(findings, data, "utf-8")
    colours = {"force_terminal": True, "color_system": "standard", "no_color": False}
    assert "\x1b[37;41m" in printed(findings, data, "utf-8", **colours)  # gone: white on red


def test_differences() -> None:
    before, after = differences("a , b", "a   b")
    assert (before.plain, after.plain) == ("a , b", "a   b")
    assert [before.plain[span.start : span.end] for span in before.spans] == [","]
    assert [after.plain[span.start : span.end] for span in after.spans] == [" "]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--data.source=absent",), "--data.source absent: there is no such file or folder"),
        (("--data.source=empty",), "there are no data files in it"),
        (("--ngram=0",), "--ngram 0: must be >= 1"),
        (("--rows=-1",), "--rows -1: must be >= 0"),
        (("--split=dev",), "expected one of"),
        (("--comprae",), "Did you mean --compare?"),
    ],
)
def test_mistakes(mistake: Mistake, tiny_model: Path, words: tuple[str, ...], told: str) -> None:
    Path("empty").mkdir()
    assert told in mistake("inspect", f"--model.pretrained={tiny_model}", *words)


def test_a_split_that_cannot_be_had(mistake: Mistake, wiki_folder: Path, tiny_model: Path) -> None:
    (wiki_folder / "wiki.train.raw").unlink()
    words = (f"--data.source={wiki_folder}", f"--model.pretrained={tiny_model}", "--split=train")
    assert "it has no train split" in mistake("inspect", *words)
