import csv
import html
import json
import math
import os
import shutil
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_lightning.cli import main
from gpt2_lightning.data import token_store
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.fit import finish
from gpt2_lightning.fit.monitoring import LAYOUT
from gpt2_lightning.model.metrics import METRICS
from gpt2_lightning.report.charts import (
    shade_of,
)
from gpt2_lightning.report.page import render
from gpt2_lightning.report.tables import duration, figure, share
from gpt2_lightning.run_folder import Run
from tests.command_line import CALM, curves, fine_tuning, fit

SECTIONS = ["figures", "curves", "data", "samples", "quality", "surprisal", "settings"]


class Page(HTMLParser):
    """What a page consists of: its tags, their attributes, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("td", "th"):
            self.cells.append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        """Note a cell's end."""
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        """Note what stands in a cell."""
        if self.in_cell:
            self.cells[-1] += data

    def values(self, attribute: str) -> list[str]:
        """Return an attribute's values."""
        return [value for _, name, value in self.attributes if name == attribute]


def assert_stands_alone(text: str) -> None:
    page = Page(text)
    alien = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "video"}
    assert not alien & set(page.tags)
    assert not {"src", "srcset", "data", "poster", "action", "background"} & {
        name for _, name, _ in page.attributes
    }
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "@import" not in text
    assert "url(" not in text
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert page.values("href")
    for place in page.values("href"):
        assert place.startswith("#")
        assert place[1:] in ids
    assert set(SECTIONS) <= set(ids)
    spoken = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert all(spoken)
    assert page.tags.count("svg") == len(spoken)


def count_calls(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """Let a function note its calls; return the list of them."""
    calls: list[object] = []
    function = getattr(owner, name)

    def noted(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    patch.setattr(owner, name, noted)
    return calls


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of long ago: no events, facts or passage."""
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    rows = ["step,train/loss,val/loss,val/perplexity", "0,,5,148.4", "2,4.5,,", "4,3.25,3,20.09"]
    (folder / "metrics.csv").write_text("\n".join([*rows, "6,3,3.5,33.12"]) + "\n")
    settings = {
        "model": {"pretrained": "small"},
        "data": {"source": "text", "cleaning": "none", "blocks": "pack", "block_size": 16},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    sample = {"prompt": "the <i>river</i>", "seed": 0, "ended": False}
    texts = {0: "a & b\u2028c", 4: "</p><script>alert(1)</script>", 6: "overdone"}
    lines = [json.dumps(sample | {"step": step, "text": text}) for step, text in texts.items()]
    (folder / "samples.jsonl").write_text("\n".join(lines) + '\n{"step": 8, "pro')
    return folder


def change(run: Path, flag: str, value: Any) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    group, name = flag.split(".")
    settings[group][name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def write_passages(run: Path, *nats: float) -> None:
    lines = [
        json.dumps({"step": step, "tokens": ["a", " <b>", "\n"], "nats": [value, 0.1, 9.5]})
        for step, value in zip((0, 4), nats, strict=True)
    ]
    (run / "surprisal.jsonl").write_text("\n".join(lines) + "\n")


def plain_nats(text: Path, folder: Path, passage: str) -> list[float]:
    """Return the nats of the beginning of the validation text by transformers alone."""
    from transformers import AutoModelForCausalLM

    data = WikiTextDataModule(str(text), tokenizer=str(folder), block_size=16)
    data.prepare(["validation"])
    data.setup("validate")
    tokens = len(data.tokenizer(passage)["input_ids"])
    assert 8 < tokens <= 16
    ids = torch.tensor(data.stores["validation"].ids[: 1 + tokens].astype("int64"))
    assert data.decode(ids[1:].tolist()) == passage
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(ids[None, :-1]).logits[0]
    nats: list[float] = torch.nn.functional.cross_entropy(
        logits, ids[1:], reduction="none"
    ).tolist()
    return nats


@pytest.mark.slow
def test_a_run_leaves_a_page(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reads = count_calls(monkeypatch, EventAccumulator, "Reload")
    compressions = count_calls(monkeypatch, token_store, "primed_xz_bits_per_byte")
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=4",
        "--trainer.max_epochs=1",
        "--model.learning_rate=3e-3",
        '--samples.prompts=["the <b>river</b> & town"]',
        "--model.sampling.max_new_tokens=8",
    )
    assert (len(reads), len(compressions)) == (1, 1)  # for table, facts, metrics.csv and report
    screen = capsys.readouterr()
    assert f"Report:     {run / 'report.html'}" in screen.out
    assert "was not written" not in screen.err
    text = (run / "report.html").read_text(encoding="utf-8")
    assert_stands_alone(text)
    page = Page(text)

    columns = curves(run)
    for name in ("val/perplexity", "val/loss", "val/bits_per_byte"):
        for value in columns[name]:
            assert figure(value) in page.cells
    before, after = (figure(value) for value in columns["val/perplexity"])
    less = columns["val/bits_per_byte"][0] - columns["val/bits_per_byte"][1]
    assert (
        f"Perplexity {before} → {after} on the validation split: {less:.2f} bits per byte" in text
    )

    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n") if line]
    assert {row["step"] for row in samples} == {0, 4}
    for row in samples:
        if "\n" not in row["text"]:
            assert f'<p class="text">{html.escape(row["text"], quote=False)}</p>' in text.replace(
                "&#34;", '"'
            ).replace("&#39;", "'")
    assert "the &lt;b&gt;river&lt;/b&gt; &amp; town" in text

    passages = [
        json.loads(line) for line in (run / "surprisal.jsonl").read_text().split("\n") if line
    ]
    assert [row["step"] for row in passages] == [0, 4]
    nats = plain_nats(wiki_folder, tiny_model, "".join(passages[0]["tokens"]))
    assert sum(passages[0]["nats"]) == pytest.approx(sum(nats), 1e-4)
    assert passages[0]["tokens"] == passages[1]["tokens"]
    assert len(page.values("title")) == 2 * len(passages[0]["tokens"])

    facts = json.loads((run / "facts.json").read_text())
    assert facts["ended"] == "finished"
    (words,) = facts["commands"]
    assert words[:5] == [
        "python",
        "-m",
        "gpt2_lightning",
        "fit",
        f"--model.pretrained={tiny_model}",
    ]
    assert facts["model"]["parameters"] == sum(
        value.numel()
        for name, value in torch.load(run / "checkpoints/last.ckpt", weights_only=True)[
            "state_dict"
        ].items()
        if "lm_head" not in name
    )
    assert facts["outcome"]["last"]["val/loss"] == pytest.approx(columns["val/loss"][-1])
    assert figure(facts["xz_bits_per_byte"]) in page.cells
    lines = (wiki_folder / "wiki.train.raw").read_text(encoding="utf-8")
    assert facts["data"]["train"]["bytes"] == len(lines.encode())
    assert facts["data"]["train"]["words"] == len(lines.split())
    assert facts["data"]["train"]["articles"] == 24
    assert f"{len(lines.encode()):,}" in page.cells
    assert (run / "config.yaml").read_text().split("\n")[1] in text

    (run / "report.html").unlink()
    main(["report", f"--run={run}"])
    assert (run / "report.html").read_text(encoding="utf-8") == text

    main(["validate", f"--ckpt_path={run}", *CALM])  # is no measurement before training
    main(["report", str(run)])
    assert (run / "report.html").read_text(encoding="utf-8") == text
    main(["test", f"--ckpt_path={run}", *CALM])
    main(["report", str(run)])
    cells = Page((run / "report.html").read_text(encoding="utf-8")).cells
    tested = [value for _, value in Run(run).curve("test/perplexity")]
    assert cells[cells.index("test split") + 1] == figure(tested[0])

    # metrics.csv, the events of both verbs, and TensorBoard's charts name what the list names
    logged = {name for row in Run(run).scalars.values() for name in row} | columns.keys() - {"step"}
    listed = {metric.name for metric in METRICS if "/" in metric.name}
    # of steps left out and of averaged weights, where there are any
    assert logged == listed - {"train/skipped_steps", "val/raw_loss", "val/averaged_loss"}
    drawn = {tag for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags}
    assert drawn <= listed


@pytest.mark.slow
def test_a_stopped_run_has_a_page_and_adds_up(wiki_folder: Path, tiny_model: Path) -> None:
    sender = f"{{class_path: tests.signals.SendSignal, init_args: {{number: {signal.SIGTERM:d}, "
    with pytest.raises(SystemExit):
        fit(
            *fine_tuning(wiki_folder, tiny_model),
            "--trainer.max_epochs=1",
            "--data.batch_size=40",
            f"--trainer.callbacks=[{sender}batch: 1}}}}]",
        )
    run = Path("lightning_logs/version_0")
    assert "stopped before its end" in (run / "report.html").read_text(encoding="utf-8")
    first = json.loads((run / "facts.json").read_text())
    assert first["ended"] == "stopped"

    main(["fit", f"--ckpt_path={run}", "--trainer.callbacks=null", *CALM])
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "stopped before its end" not in text
    assert ", in 2 parts" in text
    facts = json.loads((run / "facts.json").read_text())
    assert facts["started"] == first["started"]
    assert facts["seconds"] > first["seconds"]
    assert [words[3:5] for words in facts["commands"]][1] == ["fit", f"--ckpt_path={run}"]
    passages = (run / "surprisal.jsonl").read_text().split("\n")
    assert [json.loads(line)["step"] for line in passages if line] == [0, 9]


@pytest.mark.slow
def test_a_page_that_fails_fails_no_run(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room\nleft")

    monkeypatch.setattr(finish, "write_page", fail)
    run = fit(*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=1")
    assert (run / "hf/model.safetensors").is_file()
    said = capsys.readouterr().err
    assert "report.html was not written (no room left). To try again: " in said
    assert f"python -m gpt2_lightning report {run}" in said


@pytest.mark.slow
def test_no_passage_of_a_run_without_one(wiki_folder: Path, tiny_model: Path) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=1")
    (run / "surprisal.jsonl").unlink()
    main(["report", str(run)])
    assert "no surprisal.jsonl" in (run / "report.html").read_text(encoding="utf-8")


# --- pages of folders -----------------------------------------------------------------------------


def test_a_run_of_long_ago_has_a_page(run: Path) -> None:
    main(["report", str(run)])
    text = (run / "report.html").read_text(encoding="utf-8")
    assert_stands_alone(text)
    assert "Perplexity 148.4 → 20.09 on the validation split: 2.00 nats per token less." in text
    assert "small as it was" in text
    assert "7.4 times more likely" in text  # e^2
    assert "best, step 4" in Page(text).cells
    assert "last, step 6" in Page(text).cells
    for lacking in ("no facts.json", "no surprisal.jsonl", "samples was not logged"):
        assert lacking in text
    assert "the &lt;i&gt;river&lt;/i&gt;" in text
    assert "&lt;/p&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "a &amp; b\u2028c" in text
    assert "overdone" not in text  # the best step is shown, not the last


def test_a_line_that_a_kill_cut_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 1\n")
    whole = '{"step": 0, "text": "桥\u2028"}\n'.encode()
    (tmp_path / "samples.jsonl").write_bytes(whole + '{"step": 1, "text": "桥'.encode()[:-1])
    assert Run(tmp_path).samples == [{"step": 0, "text": "桥\u2028"}]
    assert f"{tmp_path / 'samples.jsonl'}: 1 line(s) left out" in capsys.readouterr().err


def test_a_run_that_was_killed_at_once_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 1\n")
    text = render([Run(tmp_path)])
    assert_stands_alone(text)
    assert "The validation split was not measured" in text
    assert "Nothing was logged." in text


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("0,5\n4,6", "1.00 nats per token more"),
        ("4,3", "Perplexity 20.00 on the validation split, at best."),
        ("0,5\n4,nan", "was not measured after training began"),
        ("0,5", "was not measured after training began"),
    ],
)
def test_outcomes(run: Path, metrics: str, said: str) -> None:
    rows = [f"{row},20" for row in metrics.split("\n")]
    (run / "metrics.csv").write_text("\n".join(["step,val/loss,val/perplexity", *rows]) + "\n")
    assert said in render([Run(run)])


def test_figures_that_need_a_remark(run: Path) -> None:
    def remarks() -> str:
        return html.unescape(render([Run(run)]))

    assert "published" not in remarks()
    change(run, "data.cleaning", "tutorial")
    assert "--data.cleaning tutorial has cut: not comparable with published figures." in remarks()
    (run / "facts.json").write_text(json.dumps({"no_bits_per_byte": "they say nothing"}))
    assert "Bits per byte are not given: they say nothing." in remarks()
    (run / "facts.json").write_text(json.dumps({"xz_bits_per_byte": 1.75}))
    assert "xz is a compressor" in remarks()
    with (run / "metrics.csv").open("a") as stream:
        stream.write("0,,,1\n")
    assert "so a little lucky" in remarks()


def test_a_heat_map_is_shaded_by_bits(run: Path) -> None:
    write_passages(run, 3.0, 0.1)
    text = render([Run(run)])
    assert f'<span class="s3" title="{3 / math.log(2):.1f} bits">a</span>' in text
    assert f'<span title="{0.1 / math.log(2):.1f} bits">a</span>' in text
    assert "&lt;b&gt;</span>" in text
    assert "↵\n</span>" in text
    assert f"{(3.0 + 0.1 + 9.5) / math.log(2):,.0f} bits in all" in text
    assert [shade_of(bits) for bits in (0, 0.99, 1, 2, 5, 7.9, 8, 12, 13, 99, math.inf)] == [
        *(0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7),
    ]


def test_quality_of_samples_is_drawn(run: Path) -> None:
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = [*rows[0], "samples/distinct_2", "samples/longest_copy"]
    with (run / "metrics.csv").open("w") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(row | {"samples/distinct_2": 0.5} for row in rows)
    text = render([Run(run)])
    assert "samples/distinct_2: version_0 from 0.5 at step 0" in text
    assert "Unique pairs of tokens" in text
    assert "samples/longest_copy" not in text


def test_several_runs_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run.with_name("with & without")
    shutil.copytree(run, other)
    write_passages(run, 3.0, 2.0)
    write_passages(other, 3.0, 1.0)
    (other / "metrics.csv").write_text("step,val/loss,val/perplexity\n0,5,148.4\n4,2,7.389\n")
    change(other, "model.pretrained", "large")
    main(["report", str(run), "--run", str(other)])
    page = run.with_name("report.html")
    assert f"Report: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert_stands_alone(text)
    assert "with &amp; without has the lowest perplexity: 7.389." in text
    cells = Page(text).cells
    assert cells[cells.index("model.pretrained") :][:3] == ["model.pretrained", "small", "large"]
    assert "model.pretrained" in text
    assert text.count("version_0, step 4, the best") == 2  # its sample and its passage
    assert text.count("with &amp; without, step 4, the best") == 2
    assert "before training" not in text

    change(other, "data.block_size", 32)
    assert "Their contexts differ in length" in render([Run(run), Run(other)])
    change(other, "data.tokenizer", "elsewhere")
    for digests, differ in ((["a", "a"], False), (["a", "b"], True), (["a", None], True)):
        for folder, digest in zip((run, other), digests, strict=True):
            (folder / "facts.json").write_text(json.dumps({"tokenizer": digest}), "utf-8")
        text = render([Run(run), Run(other)])
        assert ("cut the text differently" in text) is differ
    change(other, "data.source", "elsewhere")
    assert "figures cannot be compared" in render([Run(run), Run(other)])


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "elsewhere")
    twins = [Run(run), Run(tmp_path / "elsewhere/version_0")]
    assert "<title>lightning_logs/version_0, elsewhere/version_0</title>" in render(twins)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "report: of which run?"),
        (["nowhere"], "report nowhere: there is no such folder"),
        (["lightning_logs"], "Give a run folder such as lightning_logs/version_0."),
        (["lightning_logs/version_0/config.yaml"], "it is a file"),
        (["empty"], "no run folder: it holds nothing, but neither events nor config.yaml"),
        (["lightning_logs/version_0", "--output", "empty"], "--output empty/report.html would"),
        (["lightning_logs/version_0", "--output=no/page.html"], "there is no folder no"),
        (["lightning_logs/version_0", "--output=book.txt"], "book.txt: it holds something else"),
        (["--runs", "lightning_logs/version_0"], "Did you mean --run?"),
        (["--run"], "--run: it needs a value"),
        (["damaged"], "damaged/facts.json: it cannot be read"),
        (["unreadable"], "unreadable/config.yaml: it cannot be read"),
        (["table"], "table/metrics.csv: it cannot be read (it has no column named step)"),
    ],
)
def test_mistakes(
    run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("book.txt").write_text("It was a book.\n")
    for folder, file, text in (
        ("damaged", "facts.json", "{"),
        ("unreadable", "config.yaml", "a: ["),
        ("table", "metrics.csv", "epoch,loss\n1,2\n"),
    ):
        Path(folder).mkdir()
        (Path(folder) / file).write_text(text)
    with pytest.raises(SystemExit) as refused:
        main(["report", *words])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    (line,) = (line for line in message.splitlines() if "left out, cut short when" not in line)
    assert line.startswith("error: ")
    assert not list(Path().rglob("*.html*"))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("facts.json", '{"started": "yesterday"}', "facts.json: it cannot be read (Invalid isofor"),
        ("facts.json", '{"ended": "in tears"}', "no run ends as 'in tears'"),
        ("facts.json", '[{"ended": null}]', "it holds no facts of a run"),
        ("facts.json", "[" * 100_000, "nested too deeply"),
        ("facts.json", '{"steps": [1, 2]}', "it cannot be read (it holds no facts of a run: steps"),
        ("facts.json", '{"steps": {"schedule": 3}}', "holds what no run writes"),
        ("config.yaml", "a: &a [1, *a]", "config.yaml: it cannot be read"),
        ("config.yaml", "- 1", "it holds no settings"),
    ],
)
def test_damaged_files_of_a_run(
    run: Path, file: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).write_text(text)
    with pytest.raises(SystemExit) as refused:
        main(["report", str(run)])
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not list(Path().rglob("*.html*"))


def test_damaged_rows_of_samples_are_left_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (run / "samples.jsonl").read_text()
    (run / "samples.jsonl").write_text(kept + "[1, 2]\n" + "[" * 100_000 + "\n")
    main(["report", str(run)])
    assert "line(s) left out, cut short when the run was killed, or damaged." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_the_page_takes_the_place_of_a_regular_file_alone(
    run: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, page = Path("target"), Path("page.html")
    if kind == "pipe":
        os.mkfifo(page)
        with pytest.raises(SystemExit):
            main(["report", str(run), "--output=page.html"])
        assert "page.html: it is no regular file, and is not replaced." in capsys.readouterr().err
        assert page.is_fifo()
    else:
        target.write_text("<!DOCTYPE html>\n<p>an earlier page")
        page.symlink_to(target)
        main(["report", str(run), "--output=page.html"])
        assert page.is_symlink()
        assert "<html" in target.read_text()
        assert "an earlier page" not in target.read_text()


def test_a_page_is_written_whole_or_not_at_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "report.html").write_text("the old one")
    monkeypatch.setattr("gpt2_lightning.report.page.render", lambda runs: "half \ud800")
    with pytest.raises(UnicodeEncodeError):
        main(["report", str(run)])
    assert (run / "report.html").read_text() == "the old one"
    assert [file.name for file in run.iterdir() if "report" in file.name] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (10579.5, "10,580"),
        (1234567.0, "1,235,000"),
        (999.96, "1,000"),
        (191.09, "191.1"),
        (86.0, "86.00"),
        (0.05, "0.05000"),
        (0.0, "0.000"),
        (-2.5, "-2.500"),
        (math.inf, "inf"),
    ],
)
def test_figures_have_four_digits(value: float | None, written: str) -> None:
    assert figure(value) == written


def test_shares_and_durations() -> None:
    assert [share(it) for it in (None, 0.0, 0.0001, 0.333, 1.0)] == [
        *("–", "0", "< 0.1 %", "33.3 %", "100.0 %"),
    ]
    assert [duration(it) for it in (None, 9.6, 61, 7260)] == [
        *("–", "10 s", "1 min 1 s", "2 h 1 min"),
    ]
