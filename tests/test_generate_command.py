"""The verb: where prompts come from, where samples go, and what is said."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from gpt2_lightning.cli import main
from gpt2_lightning.generate import drawing
from gpt2_lightning.generate import screen as repl
from gpt2_lightning.generate.drawing import Sample, sample_file, write_samples
from gpt2_lightning.generate.screen import with_option
from gpt2_lightning.model.sampling import SamplingOptions
from tests.command_line import Mistake

Screen = pytest.CaptureFixture[str]
ONE = ("--max_new_tokens=8", "--num_return_sequences=1")
PROMPTS = ["the river", "从前 😀", "old stone of the town", "a"]


@pytest.fixture
def model(opinionated_model: Path) -> str:
    return f"--model={opinionated_model}"


def type_in(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def rows_of(file: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text("utf-8").split("\n") if line]


@pytest.fixture
def expected(model: str) -> list[dict[str, Any]]:
    """Rows of one sample for each of the prompts."""
    flags = [f"--prompt={prompt}" for prompt in PROMPTS]
    main(["generate", model, *flags, *ONE, "--output=expected.jsonl"])
    return rows_of("expected.jsonl")


def test_rows_of_a_jsonl_file(expected: list[dict[str, Any]]) -> None:
    assert [row["prompt"] for row in expected] == PROMPTS
    assert all(row.keys() == {"prompt", "seed", "text", "ended"} for row in expected)
    assert all(row["seed"] == 0 and row["text"] and not row["ended"] for row in expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("book.txt", "It was a book.\n"),
        ("data.jsonl", '{"prompt": "a", "completion": "b"}\n'),
        ("data.jsonl", "no rows\n"),
    ],
)
def test_what_is_no_samples_is_not_overwritten(
    name: str, text: str, model: str, mistake: Mistake
) -> None:
    Path(name).write_text(text)
    message = mistake("generate", model, "--prompt=a", f"--output={name}")
    assert f"--output {name}: it holds something else, which would be lost." in message
    assert Path(name).read_text() == text


@pytest.mark.parametrize("name", ["samples.txt", "samples.jsonl"])
def test_earlier_samples_are_replaced_unless_they_are_the_prompts(
    name: str, model: str, mistake: Mistake
) -> None:
    words = ("generate", model, *ONE, f"--output={name}")
    main([*words, "--prompt=a"])
    first = Path(name).read_bytes()
    main([*words, "--prompt=a", "--seed=1"])
    second = Path(name).read_bytes()
    assert first != second
    message = mistake(*words, f"--prompts_file={Path(name).resolve()}")
    assert f"--output {name}: the prompts are read from it." in message
    assert Path(name).read_bytes() == second


def test_options_of_drawing_without_drawing(model: str, capsys: Screen) -> None:
    main(["generate", model, "--prompt=a", "--do_sample=false", "--top_k=3", "--seed=5", *ONE])
    said = capsys.readouterr().err
    assert "--do_sample false: --top_k 3, --seed 5 have no effect." in said
    main(["generate", model, "--prompt=a", "--do_sample=false", *ONE])
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["text", "jsonl", "windows", "standard input", "both"])
def test_where_prompts_come_from(
    source: str,
    model: str,
    expected: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = "\n".join(PROMPTS) + "\n\n \n"
    words = ["--prompts-file=prompts.txt"]
    type_in(monkeypatch, "not read")
    match source:
        case "text":
            Path("prompts.txt").write_text(lines, encoding="utf-8")
        case "windows":
            Path("prompts.txt").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
        case "jsonl":
            rows = [json.dumps({"id": 1, "prompt": prompt}) for prompt in PROMPTS]
            Path("prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
            words = ["--prompts_file", "prompts.jsonl"]
        case "both":
            Path("prompts.txt").write_text("\n".join(PROMPTS[2:]), encoding="utf-8")
            words += ["--prompt", PROMPTS[0], f"--prompt={PROMPTS[1]}"]
        case "standard input":
            type_in(monkeypatch, lines)
            words = []
    main(["generate", model, *words, *ONE, "--output=out.jsonl", "--batch_size=2"])
    assert rows_of("out.jsonl") == expected


def test_text_on_the_screen_and_in_a_file(
    model: str, expected: list[dict[str, Any]], capsys: Screen
) -> None:
    words = ["generate", model, "--prompt=the river", *ONE]
    capsys.readouterr()
    main(words)
    screen = capsys.readouterr()
    assert screen.out == f"--- seed 0\nthe river{expected[0]['text']}\n\n"
    assert screen.err == ""
    main([*words, "--output", "out.txt", "--num_return_sequences=2"])
    assert capsys.readouterr().out == "2 samples of 1 prompts: out.txt\n"
    shown = Path("out.txt").read_text("utf-8")
    assert shown.startswith(screen.out + "--- seed 1\nthe river")


def test_greedy_needs_no_other_flag(model: str, capsys: Screen) -> None:
    main(["generate", model, "--prompt=the river", "--do_sample=false", "--max_new_tokens=4"])
    assert capsys.readouterr().out.count("--- without sampling\nthe river") == 1


def test_every_option_reaches_the_model(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SamplingOptions] = []

    def draw(model: Any, tokenizer: Any, prompts: Any, options: Any, **_: Any) -> list[Sample]:
        asked.append(options)
        return []

    monkeypatch.setattr("gpt2_lightning.generate.drawing.draw", draw)
    wanted = SamplingOptions(
        max_new_tokens=9,
        min_new_tokens=2,
        do_sample=True,
        temperature=0.5,
        top_k=3,
        top_p=0.4,
        min_p=0.1,
        typical_p=0.9,
        repetition_penalty=1.5,
        no_repeat_ngram_size=4,
        num_beams=1,
        stop=["\n", "null", "--"],
        num_return_sequences=2,
        seed=11,
    )
    flags = []
    for name, value in vars(wanted).items():
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}={one}" for one in values]
    main(["generate", model, "--prompt=a", *flags])
    Path("options.yaml").write_text(yaml.safe_dump(vars(wanted) | {"prompt": ["a"]}))
    main(["generate", model, "--config=options.yaml"])
    assert asked == [wanted, wanted]


def test_a_stream_is_the_sample(model: str, expected: list[dict[str, Any]], capsys: Screen) -> None:
    for row in expected:
        words = ["generate", model, "--prompt", row["prompt"], "--stream", "--max_new_tokens=8"]
        capsys.readouterr()
        main(words)
        screen = capsys.readouterr()
        assert screen.out == f"{row['prompt']}{row['text']}\n"
        assert screen.err == ""
        stop = row["text"][2:5]
        main([*words, "--stop", stop, "--output=out.jsonl"])
        cut = row["text"][: row["text"].index(stop)]
        assert capsys.readouterr().out.startswith(f"{row['prompt']}{cut}\n")
        assert rows_of("out.jsonl") == [row | {"text": cut, "ended": True}]


def test_past_the_positions_it_says_what_the_model_forgot(model: str, capsys: Screen) -> None:
    words = ["generate", model, "--prompt=the river", "--max_new_tokens=80", "--do_sample=false"]
    words += ["--no_repeat_ngram_size=2"]
    main(words)
    whole = capsys.readouterr()
    assert "64 positions" in whole.err
    assert "last 32 tokens" in whole.err
    assert 'the first 33 tokens from "the river" on' in whole.err
    main([*words, "--stream"])
    streamed = capsys.readouterr()
    assert streamed.out.strip() in whole.out
    assert streamed.err == whole.err
    prompts = [f"--prompt={number} {'old stone ' * 30}" for number in range(7)]
    main(["generate", model, *prompts, "--max_new_tokens=2", "--do_sample=false"])
    said = capsys.readouterr().err
    assert said.count("the first") == 5
    assert "2 more prompts" in said


def test_samples_are_written_whole_or_not_at_all() -> None:
    file = Path("a.jsonl")
    good = Sample("a", 1, "b\u2028c", ended=True)
    write_samples([good], file)
    assert rows_of(file) == [{"prompt": "a", "seed": 1, "text": "b\u2028c", "ended": True}]
    with pytest.raises(UnicodeEncodeError):
        write_samples([good, Sample("a", 1, "\ud800", ended=True)], file)
    assert len(rows_of(file)) == 1
    assert os.listdir() == ["a.jsonl"]
    assert sample_file("a.jsonl", flag="--output") == file


@pytest.mark.slow
def test_a_reader_that_leaves(opinionated_model: Path) -> None:
    words = ["--prompt=a", "--max_new_tokens=2", "--num_return_sequences=3"]
    command = [sys.executable, "-m", "gpt2_lightning", "generate", "--model", opinionated_model]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        ended = subprocess.run(
            [*map(str, command), *words], stdout=gone, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == 141
    assert ended.stderr == b""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt"], "--prompt: it needs a value"),
        (["--prompt=a", "--batch_size=0"], "--batch_size 0"),
        (
            ["--prompt=a", "--prompt=b", "--stream"],
            "--stream: only one prompt can be streamed (got 2)",
        ),
        (["--prompt=a", "--stream", "--num_return_sequences=2"], "--num_return_sequences 2: only"),
        (
            ["--prompt=a", "--stream", "--num_beams=2", "--do_sample=false"],
            "--num_beams 2: only one",
        ),
        (["--prompt=a", "--interactive"], "--prompt: with --interactive"),
        (["--interactive", "--output=a.txt"], "--output: with --interactive"),
        (["--prompt=a", "--output=a.csv"], "--output a.csv: its name must end with"),
        (["--prompt=a", "--output=absent/a.txt"], "--output absent/a.txt: the folder"),
        (["--prompt=a", "--output=folder.txt"], "--output folder.txt: it is a folder"),
        (["--prompts_file=absent"], "--prompts_file absent: there is no such file"),
        (["--prompts_file=empty.txt"], "--prompts_file empty.txt: the file holds no prompt"),
        (["--prompts_file=latin.txt"], "--prompts_file latin.txt: not UTF-8 at byte 3"),
        (["--prompts_file=bad.jsonl"], '--prompts_file bad.jsonl: line 4 is not of the form {"pr'),
        (["--prompts_file=null.jsonl"], '--prompts_file null.jsonl: line 1 is not of the form {"p'),
        (["--prompts_file=deep.jsonl"], '--prompts_file deep.jsonl: line 1 is not of the form {"p'),
        (["--prompts_file=half.jsonl"], '--prompts_file half.jsonl: line 1 is not of the form {"p'),
        (["--prompts_file", "x" * 300], "File name too long"),
        (["--prompt=a", "--output=empty.txt/a.txt"], "--output empty.txt/a.txt: the folder"),
        (["--prompt=a", "--device=meta"], "--device meta: it cannot be used here"),
        (["--prompt=a", "--temperature=1e-7"], "--temperature 1e-07: must be >= 0.000001"),
        (["--prompt=a", f"--seed={2**63 - 1}"], f"must be in 0..{2**63 - 3}"),
        (["--prompt=a", "--stop="], "--stop ['']: must be without empty strings"),
        (["--prompt=a\udcff"], "--prompt: not UTF-8 at character 1"),
        (["--prompt=a", "--device=nowhere"], "--device nowhere"),
        (["--prompt=a", "--dtype=fp8"], "--dtype"),
        (["--prompt=a", "--top_kk=3"], "Did you mean --top_k?"),
        ([], "--prompt: there is no text to continue"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(
    mistake: Mistake,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    Path("folder.txt").mkdir()
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"abc\xff")
    Path("bad.jsonl").write_text('\n{"prompt": "a"}\n\n{"text": "b"}\n')
    Path("null.jsonl").write_text('{"prompt": null}\n')
    Path("deep.jsonl").write_text("[" * 100_000)
    Path("half.jsonl").write_text('{"prompt": "\\ud800"}\n')
    type_in(monkeypatch, "\n")
    found = mistake("generate", model, *words)
    assert message in found
    assert not Path("a.txt").exists()


def test_standard_input_that_is_no_text(
    mistake: Mistake, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"a\xff")
    assert "standard input: not UTF-8 at byte 1" in mistake("generate", model)


# --- interactive ----------------------------------------------------------------------------------


def converse(monkeypatch: pytest.MonkeyPatch, model: str, *lines: str) -> None:
    type_in(monkeypatch, "".join(line + "\n" for line in lines))
    main(["generate", model, "--interactive", "--max_new_tokens=8"])


def test_a_conversation(
    model: str,
    expected: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Screen,
) -> None:
    capsys.readouterr()
    converse(
        monkeypatch,
        model,
        *("the river", "/again", "", "/set seed 0", "从前 😀"),
        *("/set top-k 1", "/set top_k 1", "a", '/set stop ["\\n", "e"]', "//a"),
        *("/save out.jsonl", "/save out.txt", "/options", "/help", "/quit", "not read"),
    )
    screen = capsys.readouterr()
    rows = rows_of("out.jsonl")
    assert [row["prompt"] for row in rows] == ["the river", "the river", "从前 😀", "a", "/a"]
    assert [row["seed"] for row in rows] == [0, 1, 0, 0, 0]
    assert rows[0] == expected[0]
    assert rows[2] == expected[1]
    assert rows[3]["text"] != expected[3]["text"]
    assert screen.out.startswith(f"--- seed 0\nthe river{expected[0]['text']}\n\n--- seed 1\n")
    assert Path("out.txt").read_text("utf-8").rstrip("\n") in screen.out
    assert "  stop = ['\\n', 'e']\n" in screen.out
    assert "/set NAME VALUE" in screen.out
    assert "not read" not in screen.out
    assert screen.err == "error: /set top-k: there is no such option. Did you mean top_k?\n"


def test_several_samples_greedy_and_beams(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: Screen
) -> None:
    converse(
        monkeypatch,
        model,
        *("/set num_return_sequences 2", "a", "/again", "/set num_return_sequences null"),
        *("/set do_sample false", "a", "/set num_beams 3", "a", "/save out.jsonl"),
    )
    rows = rows_of("out.jsonl")
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, None, None]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set", "/set: a name and a value are needed"),
        ("/set temperature", "/set: a name and a value are needed"),
        ("/set temperature 0", "temperature 0.0: must be >= 0.000001 (do_sample"),
        ("/set temperature hot", "temperature: expected a value of type float. Found: hot"),
        (
            "/set temprature 1",
            "/set temprature: there is no such option. Did you mean temperature?",
        ),
        ("/set foo 1", "/set foo: there is no such option. /options lists them."),
        ("/set num_beams 3", "num_beams 3: beams look for the likeliest"),
        ("/again", "/again: there is no prompt yet"),
        ("/save", "/save: the file is missing"),
        ("/save a.txt", "/save: there are no samples yet"),
        ("/save folder.txt", "/save: there are no samples yet"),
        ("/nonsense a", "/nonsense: there is no such command"),
    ],
)
def test_a_mistake_is_a_line_and_the_conversation_goes_on(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: Screen, line: str, message: str
) -> None:
    converse(monkeypatch, model, line, "the river")
    screen = capsys.readouterr()
    assert screen.err.startswith(f"error: {message}")
    assert screen.err.count("\n") == 1
    assert "the river" in screen.out
    assert os.listdir() == []


def test_bytes_that_are_no_text_are_a_line_too(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: Screen
) -> None:
    type_in(monkeypatch, b"a\xff\nthe river\n")
    main(["generate", model, "--interactive", "--max_new_tokens=8"])
    screen = capsys.readouterr()
    assert screen.err == "error: prompt: not UTF-8 at character 1. Write it in UTF-8.\n"
    assert "the river" in screen.out


@pytest.mark.parametrize(
    ("typed", "stop"),
    [('["a", "[b]"]', ["a", "[b]"]), ("[INST]", ["[INST]"]), ("[1, {]", ["[1, {]"]), ("a", ["a"])],
)
def test_stop_strings_are_taken_as_typed(typed: str, stop: list[str]) -> None:
    assert with_option(SamplingOptions(), f"stop {typed}").stop == stop


def test_after_the_last_seed_the_options_stay_as_they_are(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: Screen
) -> None:
    converse(monkeypatch, model, f"/set seed {2**63 - 1}", "the river", "/again", "a tower")
    screen = capsys.readouterr()
    assert screen.err.count("error: seed") == 1
    assert "a tower" in screen.out


def test_a_token_that_only_the_tokenizer_has(
    opinionated_model: Path, mistake: Mistake, tmp_path: Path
) -> None:
    folder = tmp_path / "padded"
    shutil.copytree(opinionated_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    found = mistake("generate", f"--model={folder}", "--prompt=a [PAD]")
    assert "--prompt: it contains [PAD], token 300" in found


@pytest.mark.slow
def test_letters_that_the_screen_has_not(opinionated_model: Path) -> None:
    command = [sys.executable, "-m", "gpt2_lightning", "generate", "--model", opinionated_model]
    done = subprocess.run(
        [*map(str, command), "--prompt=café", "--max_new_tokens=1"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "caf\\xe9" in done.stdout


def test_ctrl_c_stops_the_sample_and_keeps_it(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: Screen
) -> None:
    closed: list[bool] = []

    def stream(*args: Any, **kwargs: Any) -> Any:
        pieces = drawing.stream(*args, **kwargs)
        try:
            yield next(pieces)
            raise KeyboardInterrupt
        finally:
            pieces.close()
            closed.append(True)

    monkeypatch.setattr(repl, "stream", stream)
    converse(monkeypatch, model, "/set num_return_sequences 2", "the river", "/save out.jsonl")
    (row,) = rows_of("out.jsonl")
    assert row["text"]
    assert not row["ended"]
    assert closed == [True]
    assert "(stopped)" in capsys.readouterr().out
