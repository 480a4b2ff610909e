import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, GPTJConfig, PreTrainedConfig

from gpt2_lightning.cli import main
from gpt2_lightning.errors import UsageError
from gpt2_lightning.evaluate import compare
from gpt2_lightning.evaluate import protocol as published
from gpt2_lightning.evaluate.card import Card, read_cards
from gpt2_lightning.evaluate.protocol import OFFICIAL_TEXTS, Published
from tests.command_line import SMALL, Mistake, curves, fine_tuning, fit

KEYS = {
    *("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "nats"),
    *("tokens", "tokens_predicted", "words", "bytes", "protocol", "context", "stride"),
    *("model", "revision", "source", "split", "sha256", "cleaning", "reading", "first_token"),
    *("dtype", "device", "versions", "seconds", "tokens_per_second", "comparable", "intervals"),
}


def evaluate(*words: str) -> dict[str, Any]:
    main(["evaluate", *words, "--output=card.json"])
    card: dict[str, Any] = json.loads(Path("card.json").read_text(encoding="utf-8"))
    return card


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with its last layer disturbed: a worse one."""
    folder = tmp_path / "other"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(torch.rand(32) * 3)
    model.save_pretrained(folder)
    for file in tiny_model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_card_says_what_was_measured_and_how(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = evaluate(
        *(f"--model={tiny_model}", f"--data.source={wiki_folder}", "--protocol=sliding"),
        *("--context=48", "--stride=16", "--batch-size=3"),
    )
    assert card.keys() >= KEYS
    original = (wiki_folder / "wiki.test.raw").read_bytes()
    assert card["sha256"] == sha256(original).hexdigest()
    assert card["bytes"] == len(original)
    assert card["words"] == len(original.decode().split())
    assert (card["context"], card["stride"], card["dtype"]) == (48, 16, "fp32")
    assert card["tokens_predicted"] == card["tokens"] - 1
    assert card["token_perplexity"] == pytest.approx(
        math.exp(card["nats"] / card["tokens_predicted"])
    )
    # the token that is not predicted is charged at the mean of the others
    whole = card["nats"] * card["tokens"] / card["tokens_predicted"]
    assert card["word_perplexity"] == pytest.approx(math.exp(whole / card["words"]))
    assert card["byte_perplexity"] == pytest.approx(math.exp(whole / card["bytes"]))
    assert card["bits_per_byte"] == pytest.approx(whole / card["bytes"] / math.log(2))
    assert "not an official one" in card["comparable"]
    screen = capsys.readouterr().out
    assert "sliding, context 48, stride 16" in screen
    assert f"{card['token_perplexity']:,.2f}" in screen


def test_articles_come_with_intervals(wiki_folder: Path, tiny_model: Path) -> None:
    card = evaluate(f"--model={tiny_model}", f"--data.source={wiki_folder}", "--protocol=articles")
    assert card["articles"] == 5
    assert card["tokens_predicted"] == card["tokens"]
    assert card["words_rule"].startswith("re.split")
    for figure, (low, high) in card["intervals"].items():
        assert low < card[figure] < high
    (back,) = read_cards(Path("card.json"), card["parameters"])
    assert json.loads(json.dumps(asdict(back))) == card
    assert back.intervals == {name: tuple(ends) for name, ends in card["intervals"].items()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokens": True}, "its tokens is of the wrong type"),
        ({"stride": "8"}, "its stride is of the wrong type"),
        ({"nats": math.inf}, "its nats is of the wrong type"),
        ({"intervals": {"bits_per_byte": [1.0]}}, "its intervals is of the wrong type"),
        ({"protocol": "guessing"}, "its protocol is of the wrong type"),
    ],
)
def test_what_is_no_card_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    types = get_type_hints(Card)
    card: dict[str, Any] = {name: 1 if of in (int, float) else {} for name, of in types.items()}
    card |= {name: "text" for name, of in types.items() if of is str}
    card |= {name: None for name, of in types.items() if NoneType in get_args(of)}
    card |= {"protocol": "sliding"}
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card))
    assert read_cards(file, 1)[0].stride is None
    file.write_text(json.dumps(card | change))
    with pytest.raises(UsageError, match=f"it is not a card \\({told}"):
        read_cards(file, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "blocks",
    [(), ("--data.blocks=pad", "--data.cleaning=tutorial"), ("--data.attend=document",)],
)
def test_training_protocol_is_what_the_run_validated(
    blocks: tuple[str, ...], wiki_folder: Path, tiny_model: Path
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *blocks)
    run = fit(*words, "--trainer.max_steps=3")
    # the text and its blocks are the run's own
    card = evaluate(f"--model={run}", "--protocol=training", "--split=validation")
    wanted = curves(run)
    assert card["token_perplexity"] == pytest.approx(min(wanted["val/perplexity"]), rel=1e-6)
    if "--data.attend=document" in blocks:
        assert "--data.attend document" in card["reading"]
        card = evaluate(f"--model={run}", "--protocol=disjoint", "--split=validation")
        assert "attention across documents" in card["reading"]
    elif blocks:
        assert card["bits_per_byte"] is None
        assert "--data.cleaning tutorial has changed the text" in card["comparable"]
    else:
        assert card["bits_per_byte"] == pytest.approx(min(wanted["val/bits_per_byte"]), rel=1e-6)
        checkpoint = evaluate(
            f"--model={run / 'checkpoints' / 'last.ckpt'}", "--protocol=training",
            "--split=validation",
        )  # fmt: skip
        last = wanted["val/perplexity"][-1]
        assert checkpoint["token_perplexity"] == pytest.approx(last, rel=1e-6)


def test_the_better_of_two_models_is_told(
    wiki_folder: Path, tiny_model: Path, other_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = evaluate(
        *(f"--model={tiny_model}", f"--against={other_model}"),
        *(f"--data.source={wiki_folder}", "--protocol=articles"),
    )
    difference = card["difference"]
    between = card["bits_per_byte"] - card["against"]["bits_per_byte"]
    assert difference["bits_per_byte"] == pytest.approx(between)
    assert difference["interval"][1] < 0
    screen = capsys.readouterr()
    assert f"{tiny_model} is better than {other_model}, on 5 of 5" in screen.out
    # one source is opened once for both
    assert (
        screen.err.count(f"{wiki_folder}: train: wiki.train.raw; validation: wiki.valid.raw") == 1
    )


def test_what_is_taken_out_of_the_training_text_is_said_once(
    wiki_folder: Path, tiny_model: Path, other_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("valid", "test"):
        (wiki_folder / f"wiki.{name}.raw").unlink()
    evaluate(
        *(f"--model={tiny_model}", f"--against={other_model}"),
        *(f"--data.source={wiki_folder}", "--protocol=articles"),
    )
    assert capsys.readouterr().err.count("has no validation and no test split: holding out") == 1


def test_text_without_spaces_has_no_word_perplexity(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zh.txt").write_text("小明的书在桌子上。他今天很高兴，\n" * 20, encoding="utf-8")
    words = (f"--model={tiny_model}", "--data.source=zh.txt", "--split=all")
    for protocol in ("sliding", "articles"):
        card = evaluate(*words, f"--protocol={protocol}", "--context=16")
        assert card["word_perplexity"] is None
        assert card["bits_per_byte"] > 0
        assert card["no_words"] == "most of the text is in a script without spaces between words"
        assert f"word perplexity   - ({card['no_words']})" in capsys.readouterr().out
    (tmp_path / "en.txt").write_text("the old bridge 桥\n" * 40, encoding="utf-8")
    card = evaluate(f"--model={tiny_model}", "--data.source=en.txt", "--split=all")
    assert card["no_words"] is None
    assert card["word_perplexity"] > 0


def test_a_whole_file_without_splits(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "book.txt").write_text("the old bridge\n" * 40, encoding="utf-8")
    words = (f"--model={tiny_model}", "--data.source=book.txt")
    assert evaluate(*words, "--split=all")["bytes"] == 600
    cards = {split: evaluate(*words, f"--split={split}") for split in ("test", "train")}
    assert "held out of the training text here" in cards["test"]["reading"]
    assert "held out" not in cards["train"]["reading"]
    for card in cards.values():  # each of its own text: some 15 bytes a line, few tokens each
        assert card["tokens"] < card["bytes"] < 15 * card["tokens"]
    assert cards["train"]["tokens"] > 10 * cards["test"]["tokens"]


@pytest.fixture
def published_text(wiki_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text that counts as an official one, in place of WikiText-2's."""
    digest = sha256((wiki_folder / "wiki.test.raw").read_bytes()).hexdigest()
    monkeypatch.setitem(OFFICIAL_TEXTS, digest, "Bridges, test")
    return wiki_folder


def publish(figure: float, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"somebody/{model.name}"
    row = Published(
        name, "Bridges, test", "sliding", 32, 16, "token_perplexity", figure, 2, "https://a.example"
    )
    for module in (published, compare):
        monkeypatch.setattr(module, "PUBLISHED", (row,))


def test_reference_puts_ours_beside_the_published_one(
    published_text: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (f"--model={tiny_model}", f"--data.source={published_text}")
    wanted = evaluate(*words, "--protocol=sliding", "--context=32", "--stride=16")
    assert wanted["comparable"].startswith("comparable with: token perplexities")
    figure = round(wanted["token_perplexity"], 2)
    publish(figure, tiny_model, monkeypatch)
    found = evaluate(*words, "--reference")
    screen = capsys.readouterr().out
    assert f"expected {figure:.2f}, got {figure:.2f}: this pipeline measures what" in screen
    assert "https://a.example" in screen
    assert found["reference"][0]["agrees"] is True

    publish(1.1 * figure, tiny_model, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *words, "--reference"])
    assert stopped.value.code == 1
    screen = capsys.readouterr().out
    assert "-9.09 % off" in screen
    assert "Usual causes" in screen


def test_reference_never_takes_other_text(
    published_text: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Mistake,
) -> None:
    publish(100.0, tiny_model, monkeypatch)
    words = ("evaluate", f"--model={tiny_model}", f"--data.source={published_text}", "--reference")
    assert "cleaning tutorial" in mistake(*words, "--data.cleaning=tutorial")
    (published_text / "wiki.test.raw").write_text("Other text.\n", encoding="utf-8")
    assert "the published figures are of Bridges, test" in mistake(*words)
    monkeypatch.undo()
    assert "no published figure of" in mistake(*words)


@pytest.mark.slow
def test_two_processes_give_the_same_answer(wiki_folder: Path, tiny_model: Path) -> None:
    words = (
        *(f"--model={tiny_model}", f"--data.source={wiki_folder}", "--protocol=articles"),
        *("--context=32", "--batch_size=3", "--device=cpu"),
    )
    one = evaluate(*words)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *(f"--master-port={port}", "-m", "gpt2_lightning", "evaluate", *words),
            "--output=two.json",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("token perplexity") == 1  # one process speaks
    two = json.loads(Path("two.json").read_text(encoding="utf-8"))
    assert two["processes"] == 2
    assert two["nats"] == pytest.approx(one["nats"], rel=1e-9)
    assert two["tokens_predicted"] == one["tokens_predicted"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--context=65",), "--context 65: the model has 64 positions"),
        (("--stride=65", "--context=64"), "--stride 65: must be <= the context of 64"),
        (("--stride=0",), "--stride 0: must be >= 1"),
        (("--stride=-3",), "--stride -3: must be >= 1"),
        (("--context=1",), "--context 1: a window of one token"),
        (("--batch_size=0",), "--batch_size 0"),
        (("--protocol=articles", "--stride=8"), "--stride 8: --protocol articles has no sliding"),
        (("--protocol=training", "--joiner=nothing"), "--joiner nothing"),
        (("--protocol=disjont",), "expected one of"),
        (("--against=x",), "--against: --protocol sliding"),
        (("--against=x", "--protocol=articles"), "--against x: no model was found there"),
        (("--protocol=training", "--data.block_size=65"), "--data.block_size 65: the model has 64"),
        (("--reference", "--stride=4"), "--reference: the published figures determine how"),
        (("--output=wiki",), "--output wiki: it is not a file"),
        (("--output=wiki/wiki.test.raw",), "it holds something else, which would be lost"),
        (("--split=all",), "--split all: "),
        (("--output=absent/card.json",), "--output absent/card.json: the folder"),
        (("--data.sourc=x",), "--data.sourc: there is no such flag"),
    ],
)
def test_mistakes(
    words: tuple[str, ...], said: str, wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    given = ("evaluate", f"--model={tiny_model}", f"--data.source={wiki_folder}", "--output=c.json")
    assert said in mistake(*given, *words)
    assert not Path("c.json").exists()


def test_no_text_was_named(tiny_model: Path, mistake: Mistake) -> None:
    assert "--data.source: no text is given" in mistake("evaluate", f"--model={tiny_model}")


def test_an_empty_split(tmp_path: Path, tiny_model: Path, mistake: Mistake) -> None:
    (tmp_path / "train.txt").write_text("the bridge\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("", encoding="utf-8")
    words = ("evaluate", f"--model={tiny_model}", f"--data.source={tmp_path}", "--output=c.json")
    assert "--split: there is no text in it" in mistake(*words)


def test_models_that_cannot_score(other_model: Path, wiki_folder: Path, mistake: Mistake) -> None:
    words = (
        "evaluate",
        f"--model={other_model}",
        f"--data.source={wiki_folder}",
        "--output=c.json",
    )
    broken: Any = AutoModelForCausalLM.from_pretrained(other_model)
    broken.transformer.ln_f.bias.data[0] = math.nan
    broken.save_pretrained(other_model)
    assert f"--model {other_model}: its logits are not numbers" in mistake(*words)
    broken.transformer.ln_f.bias.data[0] = 0.0
    broken.save_pretrained(other_model)
    for file in other_model.glob("tokenizer*"):
        file.unlink()
    assert f"--model {other_model}: the tokenizer is empty" in mistake(*words)
    assert not Path("c.json").exists()
    assert not list(Path().glob(".c.json*"))


def test_small_blocks_are_a_flag_of_the_training_protocol(
    wiki_folder: Path, tiny_model: Path
) -> None:
    words = (f"--model={tiny_model}", f"--data.source={wiki_folder}", "--protocol=training")
    card = evaluate(*words, SMALL[0])
    assert card["context"] == 16
    assert card["tokens"] == card["tokens_predicted"]


def test_samples_are_measured_against_the_training_split(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], mistake: Mistake
) -> None:
    words = (f"--model={tiny_model}", f"--data.source={wiki_folder}", "--samples=5")
    found = evaluate(*words)["samples"]
    assert found["count"] == 5
    assert len(found["quality"]["longest_copies"]) == 5
    assert found["quality"]["longest_copy"] >= 1
    assert 0 < found["quality"]["distinct_2"] <= 1
    assert "consecutive tokens of the training split" in capsys.readouterr().out
    (wiki_folder / "wiki.train.raw").unlink()
    assert evaluate(*words)["samples"]["quality"]["longest_copy"] is None
    assert "--samples 5: it needs one model" in mistake("evaluate", *words, "--reference")


def test_flags_may_come_from_a_file(wiki_folder: Path, tiny_model: Path) -> None:
    Path("c.yaml").write_text(
        f"model: {tiny_model}\nprotocol: articles\ndata: {{source: {wiki_folder}}}\n",
        encoding="utf-8",
    )
    assert evaluate("--config=c.yaml")["articles"] == 5


def test_another_text_takes_over_how_the_runs_was_cut_and_nothing_of_where_it_lay(
    wiki_folder: Path, tiny_model: Path
) -> None:
    data = "{source: gone, subset: s, text_column: page, cleaning: tutorial, block_size: 16}"
    run = Path("run")
    run.mkdir()
    (run / "config.yaml").write_text(f"data: {data}\n", encoding="utf-8")
    (run / "hf").symlink_to(tiny_model)
    Path("t.jsonl").write_text('{"text": "The old bridge."}\n', encoding="utf-8")
    card = evaluate("--model=run", "--data.source=t.jsonl", "--split=train", "--protocol=training")
    assert card["subset"] is None
    assert (card["cleaning"], card["context"]) == ("tutorial", 16)
    # settings beside a model folder are not its own
    Path("config.yaml").write_text(f"data: {data}\n", encoding="utf-8")
    Path("copy").symlink_to(tiny_model)
    assert evaluate("--model=copy", f"--data.source={wiki_folder}")["cleaning"] == "none"


def test_what_no_number_can_hold_is_null(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "no_spaces.txt").write_text("thebridge" * 200, encoding="utf-8")
    words = (f"--model={tiny_model}", "--split=all")
    card = evaluate(*words, "--data.source=no_spaces.txt")
    assert card["word_perplexity"] is None
    assert card["bits_per_byte"] > 0
    Path("t.jsonl").write_text('{"text": ""}\n{"text": "the bridge"}\n', encoding="utf-8")
    card = evaluate(*words, "--data.source=t.jsonl", "--protocol=articles")
    assert card["token_perplexity"] > 1
    assert card["intervals"]["token_perplexity"] is None


def test_one_article_is_refused_before_it_is_scored(
    tiny_model: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was scored")

    monkeypatch.setattr("gpt2_lightning.evaluate.screen.evaluate", never)
    Path("poem.txt").write_text("the river\nthe bridge\n", encoding="utf-8")
    words = ("evaluate", f"--model={tiny_model}", f"--against={tiny_model}", "--protocol=articles")
    message = mistake(*words, "--data.source=poem.txt", "--split=all")
    assert "--against: the text is one article" in message
    assert "--data.documents line makes each line of a text file an article" in message
    lines = ("--data.source=poem.txt", "--split=all", "--data.documents=line")
    with pytest.raises(AssertionError, match="it was scored"):
        main([*words, *lines])


def test_models_of_unlike_kinds_are_not_compared_in_bytes(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    words = ("evaluate", f"--model={tiny_model}", f"--against={tiny_model}")
    cleaned = ("--protocol=articles", "--data.cleaning=tutorial")
    assert "--against: bits per byte of" in mistake(
        *words, f"--data.source={wiki_folder}", *cleaned
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GPTJConfig(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8),
         "has a head that is more than a matrix"),
        (BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=32, max_position_embeddings=64),
         "is of type bert, which is no causal language model"),
    ],
)  # fmt: skip
def test_a_model_that_scores_otherwise_is_refused(
    config: PreTrainedConfig, said: str, tiny_model: Path, wiki_folder: Path, mistake: Mistake
) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().bias.add_(torch.rand(300))
    model.save_pretrained("odd")
    for file in tiny_model.glob("tokenizer*"):
        (Path("odd") / file.name).write_bytes(file.read_bytes())
    message = mistake("evaluate", "--model=odd", f"--data.source={wiki_folder}")
    assert said in message
