import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from transformers import GPT2LMHeadModel

from gpt2_lightning import load
from gpt2_lightning.cli import main
from gpt2_lightning.fit import monitoring
from gpt2_lightning.generate.text_model import load_checkpoint
from gpt2_lightning.model.gpt2 import grow
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.report.tables import figure
from gpt2_lightning.run_folder import read_scalars
from tests.command_line import CALM, SMALL, Mistake, curves, fine_tuning, fit

TRAINED = ("--trainer.max_steps=12", "--trainer.max_epochs=1", "--model.learning_rate=3e-3")
OF_SAMPLES = {f"samples/{name}" for name in ("distinct_2", "repeated_4", "ended", "longest_copy")}


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert isinstance(state, dict)
    return state


def test_a_run_that_made_the_model_worse_says_so(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=2")
    for rate, worse in ((1e-4, False), (1.0, True)):
        fit(*words, f"--model.learning_rate={rate}")
        said = " ".join(capsys.readouterr().out.split())
        assert ("before: better than every validation since; a lower" in said) is worse


def test_a_run_from_text_to_a_model(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *TRAINED, "--trainer.val_check_interval=6")
    columns = curves(run)
    assert set(columns) == {
        "step",
        "train/loss",
        "train/perplexity",
        "train/epoch",
        "train/learning_rate",
        "train/grad_norm",
        "train/tokens_seen",
        "train/tokens_per_second",
        "train/model_flops_per_second",
        "train/peak_memory_gb",
        "val/loss",
        "val/perplexity",
        "val/bits_per_byte",
        "val/loss_best",
        *OF_SAMPLES,
    }
    assert columns["step"] == list(range(13))
    assert columns["train/perplexity"] == pytest.approx(
        [math.exp(x) for x in columns["train/loss"]]
    )
    assert columns["train/epoch"] == pytest.approx([step / 179 for step in range(1, 13)])
    assert columns["val/loss_best"] == [min(columns["val/loss"])]
    assert len(columns["train/loss"]) == 12
    assert columns["train/loss"][-1] < columns["train/loss"][0] - 0.3
    assert len(columns["val/loss"]) == 3  # before, in the middle, at the end
    assert columns["val/loss"] == sorted(columns["val/loss"], reverse=True)
    assert columns["train/tokens_seen"][-1] == 12 * 2 * 16

    screen = capsys.readouterr().out
    assert figure(columns["val/perplexity"][0]) in screen
    assert figure(columns["val/perplexity"][-1]) in screen
    assert f"generate --model {run}" in screen

    assert {file.name for file in (run / "checkpoints").iterdir()} == {
        f"best-step12-val_loss{columns['val/loss'][-1]:.3f}.ckpt",
        "last.ckpt",
    }
    main(["generate", f"--model={run}", "--prompt=the river", "--max-new-tokens=5"])
    samples = capsys.readouterr().out.split("--- seed ")[1:]
    assert [sample.splitlines()[:1] for sample in samples] == [["0"], ["1"], ["2"]]
    assert all("the river" in sample for sample in samples)


@pytest.mark.slow
def test_validation_is_logged_at_the_steps_taken(wiki_folder: Path, tiny_model: Path) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *TRAINED, "--trainer.val_check_interval=6")
    table = read_scalars(run)
    assert [step for step, row in table.items() if "val/loss" in row] == [0, 6, 12]
    assert {step for step, row in table.items() if "train/loss" in row} == set(range(1, 13))


@pytest.mark.slow
def test_the_baseline_is_the_model_before_training(wiki_folder: Path, tiny_model: Path) -> None:
    words = fine_tuning(wiki_folder, tiny_model)
    run = fit(*words, "--trainer.max_steps=1")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [0] * 9 + [1] * 9  # three prompts, three seeds
    assert {row["seed"] for row in samples} == {0, 1, 2}
    main(["validate", *words, *CALM, "--trainer.logger=false"])
    module_loss = curves(run)["val/loss"][0]
    assert module_loss == pytest.approx(plain_loss(wiki_folder, tiny_model), rel=1e-6)


def plain_loss(text: Path, folder: Path) -> float:
    """Return the validation loss by transformers alone: packed, at 16 tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = (text / "wiki.valid.raw").read_text(encoding="utf-8").split("\n")
    articles: list[str] = []
    for row in rows[:-1]:
        if row.startswith(" = "):
            articles.append("")
        if articles:
            articles[-1] += row + "\n"
    articles[0] = " \n" + articles[0]
    articles[:-1] = [article.removesuffix(" \n") + " \n" for article in articles[:-1]]
    end = tokenizer.eos_token_id
    ended = [[*tokenizer(text)["input_ids"], end] for text in articles]
    ids = torch.tensor([end, *itertools.chain(*ended)])
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 16):
            block = ids[start : start + 17]
            logits = model(block[None, :-1]).logits[0]
            nats += float(
                torch.nn.functional.cross_entropy(logits.double(), block[1:], reduction="sum")
            )
    return nats / (len(ids) - 1)


@pytest.mark.slow
def test_samples_and_logging_change_nothing(wiki_folder: Path, tiny_model: Path) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *TRAINED, "--trainer.val_check_interval=3")
    one = fit(*words)
    other = fit(
        *words,
        "--samples.enabled=false",
        "--trainer.log_every_n_steps=5",
        "--trainer.num_sanity_val_steps=0",
    )
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (other / "samples.jsonl").exists()


@pytest.mark.slow
def test_accumulation_is_a_larger_batch(wiki_folder: Path, tiny_model: Path) -> None:
    words = (
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=10",
        "--model.dropout=0.0",
        "--model.attention_dropout=0.0",
        "--trainer.gradient_clip_val=1.0",
    )
    whole = fit(*words, "--data.batch_size=4")
    parts = fit(*words, "--data.batch_size=1", "--trainer.accumulate_grad_batches=4")
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        assert curves(parts)[name] == pytest.approx(curves(whole)[name], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--trainer.precision=bf16-mixed",),
        ("--model.gradient_checkpointing=true",),
        ("--model.attention=eager",),
        ("--data.blocks=pad",),
        ("--trainer.precision=bf16-true",),
        ("--trainer.gradient_clip_algorithm=value",),
        ("--data.cleaning=detokenize",),
        ("--model.schedule=constant", "--model.warmup_steps=2"),
    ],
    ids=" ".join,
)
def test_options_train_and_their_checkpoints_load(
    words: tuple[str, ...], wiki_folder: Path, tiny_model: Path
) -> None:
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        *TRAINED,
        "--trainer.gradient_clip_val=0.5",
        *words,
    )
    columns = curves(run)
    assert columns["val/loss"][-1] < columns["val/loss"][0] - 0.1
    assert max(columns["train/grad_norm"]) > 0.5  # the norm before clipping
    plain = load_checkpoint(run / "checkpoints" / "last.ckpt").model
    ids = torch.arange(16).unsqueeze(0)
    assert torch.isfinite(plain(ids).logits).all()


@pytest.mark.slow
def test_a_step_leaves_no_gradients(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def forward(module: GPT2Module, *args: Any) -> torch.Tensor:
        held.append(sum(it.grad is not None for it in module.parameters()))
        return step(module, *args)

    step = GPT2Module.training_step
    monkeypatch.setattr(GPT2Module, "training_step", forward)
    words = ("--trainer.max_steps=2", "--trainer.accumulate_grad_batches=2")
    fit(*fine_tuning(wiki_folder, tiny_model), *words)
    # the second micro-batch of a step finds those of the first
    assert [found > 0 for found in held] == [False, True, False, True]


def test_clipping_limits_the_step(wiki_folder: Path, tiny_model: Path) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=3")
    tight = fit(*words, "--trainer.gradient_clip_val=1e-12", "--model.weight_decay=0.0")
    assert curves(tight)["val/loss"][-1] == pytest.approx(curves(tight)["val/loss"][0], rel=1e-3)


@pytest.mark.slow
def test_compiling_trains_and_keeps_the_checkpoints_keys(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the graph is traced for real, and run without waiting for a C++ compiler
    monkeypatch.setattr(torch, "compile", _eagerly(torch.compile))
    # without dropout, of which compiled code draws other elements
    words = (*fine_tuning(wiki_folder, tiny_model), *TRAINED, "--model.dropout=0")
    compiled, plain = fit(*words, "--model.compile=true"), fit(*words)
    assert weights(compiled).keys() == weights(plain).keys()
    assert curves(compiled)["val/loss"] == pytest.approx(curves(plain)["val/loss"], rel=1e-4)


def _eagerly(compile: object) -> object:
    def with_eager_backend(function: object) -> object:
        assert callable(compile)
        return compile(function, backend="aot_eager")

    return with_eager_backend


@pytest.mark.slow
def test_from_scratch_with_a_tokenizer_of_its_own(wiki_folder: Path) -> None:
    run = fit(
        f"--data.source={wiki_folder}",
        *SMALL,
        "--data.vocab_size=300",
        "--model.architecture={layers: 2, heads: 2, width: 32}",
        "--trainer.max_steps=30",
        "--model.learning_rate=1e-2",
    )
    columns = curves(run)
    assert columns["val/loss"][0] == pytest.approx(math.log(300), abs=0.3)  # a guess at random
    assert columns["val/loss"][-1] < columns["val/loss"][0] - 1
    config = json.loads((run / "hf" / "config.json").read_text())
    assert config["vocab_size"] == 300
    assert config["n_positions"] == 16


@pytest.mark.slow
def test_predict_continues_prompts_in_order(
    tmp_path: Path, wiki_folder: Path, tiny_model: Path
) -> None:
    # the third holds characters that end a line for Python, but not for a reader of jsonl
    prompts = ["the river", "a", "in 1923 \u2028 the town \x85 council", "old", "two 😀 who"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    words = (f"--model.pretrained={tiny_model}", *SMALL, "--data.prompts=prompts.txt", *CALM)
    main(["predict", *words])
    rows = [
        json.loads(line)
        for line in Path("lightning_logs/version_0/predictions.jsonl").read_text().split("\n")
        if line
    ]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["prompt"] for row in rows] == prompts
    assert all(len(row["samples"]) == 3 for row in rows)
    # a sample does not depend on what else is in the batch
    main(["predict", *words, "--data.batch_size=1"])
    alone = Path("lightning_logs/version_1/predictions.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(line) for line in alone] == rows


@pytest.mark.slow
def test_sampling_options_of_fit_and_predict(wiki_folder: Path, opinionated_model: Path) -> None:
    words = fine_tuning(wiki_folder, opinionated_model)
    options = (
        *("--model.sampling.do_sample=false", '--model.sampling.stop=["w", " t", "\\n"]'),
        *("--model.sampling.max_new_tokens=12", "--model.sampling.no_repeat_ngram_size=1"),
    )
    run = fit(*words, *options, "--trainer.max_steps=1")
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n") if line]
    assert len(rows) == 6  # three prompts before and after the step, a sample each
    assert not any({"w", "\n"} & set(row["text"]) for row in rows)
    assert any(row["ended"] for row in rows)
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    kept = checkpoint["hyper_parameters"]["sampling"]
    assert kept["stop"] == ["w", " t", "\n"]
    assert kept["num_return_sequences"] is None
    Path("prompts.txt").write_text("the river\n")
    main(["predict", f"--ckpt_path={run}", "--data.prompts=prompts.txt", *CALM])
    (row,) = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    (sample,) = row["samples"]
    assert not {"w", "\n"} & set(sample["text"])
    settings = json.loads((run / "hf/generation_config.json").read_text())
    assert settings["no_repeat_ngram_size"] == 1
    assert "temperature" not in settings


@pytest.mark.slow
def test_test_and_validate_take_a_run(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *TRAINED)
    main(["validate", "--ckpt_path=last", *CALM])
    screen = capsys.readouterr().out
    assert f"{curves(run)['val/loss'][-1]:#.4g}" in screen
    assert "version_0, last" in screen
    main(["test", f"--ckpt_path={run}", *CALM, "--data.batch_size=5"])
    table = capsys.readouterr().out
    assert "Test " in table
    assert "perplexity" in table
    main(["test", f"--ckpt_path={run}", *CALM, "--verbose=true"])
    assert "test/perplexity" in capsys.readouterr().out


def test_a_run_says_what_it_does_and_how_it_ended(
    wiki_folder: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitoring, "SECONDS_OF_A_LINE", 0.0)
    words = ("--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.max_steps=3")
    main(["fit", *fine_tuning(wiki_folder, tiny_model), *words])
    run = Path("lightning_logs/version_0")
    screen = capsys.readouterr()
    assert f"Training {tiny_model} on {wiki_folder}, cleaning none." in screen.err
    lines = screen.out.splitlines()  # no terminal, no bar
    logged = curves(run)
    total = json.loads((run / "facts.json").read_text("utf-8"))["steps"]["schedule"]
    assert [line for line in lines if "train/loss" in line] == [
        f"Step {step} of 3, train/loss {loss:.3f} at step {step}"
        for step, loss in enumerate(logged["train/loss"], start=1)
    ]
    shown = [f"{value:#.4g}" for value in logged["val/perplexity"]]
    validations = [line for line in lines if ": perplexity" in line]
    assert [line.split(",")[0] for line in validations] == [
        f"Step 0: perplexity {shown[0]}", f"Step 3: perplexity {shown[-1]}"
    ]  # fmt: skip
    assert f"Ended after step 3 of {total}, by --trainer.max_steps." in screen.out
    assert f"3 of {total} scheduled steps" in (run / "report.html").read_text("utf-8")


def test_the_name_that_the_bar_overrides_is_still_lightnings() -> None:
    assert "_get_train_description" in vars(RichProgressBar)
    assert "_get_train_description" in vars(monitoring.ProgressBar)


@pytest.mark.slow
def test_two_runs_without_a_logger_or_checkpoints(wiki_folder: Path, tiny_model: Path) -> None:
    none = ("--checkpoint.save_top_k=0", "--checkpoint.save_last=false")
    words = (*fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.logger=false", *none)
    for _ in range(2):  # Lightning would refuse the second one, for the first one's config.yaml
        main(["fit", *words, "--trainer.max_steps=1"])
    assert not Path("config.yaml").exists()
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.slow
def test_samples_of_padded_rows_begin_with_text(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=1", "--data.blocks=pad")
    reason = "val/bits_per_byte is not logged: --data.blocks pad cuts off what is longer than"
    assert capsys.readouterr().err.count(reason) == 1  # of two validations
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert rows
    assert not any("<|endoftext|>" in row["prompt"] for row in rows)


@pytest.mark.slow
def test_logging_and_clipping_can_be_off(wiki_folder: Path, tiny_model: Path) -> None:
    run = fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=2",
        "--trainer.log_every_n_steps=0",
        "--trainer.gradient_clip_val=0",
    )
    assert set(curves(run)) == {
        "step",
        "val/loss",
        "val/perplexity",
        "val/bits_per_byte",
        "val/loss_best",
        *OF_SAMPLES,
    }


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, 50])
def test_the_first_and_the_last_step_are_logged(
    every: int, wiki_folder: Path, tiny_model: Path
) -> None:
    words = fine_tuning(wiki_folder, tiny_model)
    run = fit(*words, "--trainer.max_steps=5", f"--trainer.log_every_n_steps={every}")
    table = read_scalars(run)
    logged = {1, 5} | set(range(every, 5, every))
    for name in ("loss", "learning_rate", "grad_norm", "tokens_seen", "tokens_per_second"):
        assert {step for step, row in table.items() if f"train/{name}" in row} == logged


def test_generate_takes_any_character(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["😀 river", 'quoted "town"', "null", "[1, 2]", "a\u2028b", "--"]
    words = [f"--prompt={prompt}" for prompt in prompts]
    main(["generate", f"--model={tiny_model}", *words, "--max-new-tokens=2"])
    screen = capsys.readouterr().out
    assert all(screen.count(f"\n{prompt}") >= 3 for prompt in prompts)


@pytest.mark.slow
def test_a_last_step_between_validations_is_measured(wiki_folder: Path, tiny_model: Path) -> None:
    words = (
        *fine_tuning(wiki_folder, tiny_model),
        "--data.batch_size=40",
        "--trainer.max_epochs=1",
    )
    run = fit(*words, "--trainer.val_check_interval=4")  # of nine micro-batches
    measured = [step for step, row in read_scalars(run).items() if "val/loss" in row]
    assert measured == [0, 4, 8, 9]
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 9


@pytest.mark.slow
def test_a_run_without_validation_is_saved(wiki_folder: Path, tiny_model: Path) -> None:
    words = fine_tuning(wiki_folder, tiny_model)
    run = fit(*words, "--trainer.max_steps=2", "--trainer.limit_val_batches=0")
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert (run / "hf/model.safetensors").is_file()


@pytest.mark.slow
def test_added_tokens_have_rows_of_their_own(
    wiki_folder: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "tokens.txt"
    words.write_text("zyxwv\n\n<|speaker|>\nzyxwv\n", encoding="utf-8")
    text = tmp_path / "talk.txt"
    text.write_text(("<|speaker|> said zyxwv again. " * 40 + "\n") * 30, encoding="utf-8")
    flags = (*fine_tuning(text, tiny_model), f"--data.add_tokens={words}")
    before = GPT2LMHeadModel.from_pretrained(tiny_model).transformer.wte.weight
    grown = GPT2Module(str(tiny_model), vocab_size=302, added_tokens=2).model
    weight = grown.get_input_embeddings().weight
    assert weight is grown.get_output_embeddings().weight
    assert torch.equal(weight[:300], before)
    torch.testing.assert_close(weight[300:], before.mean(0).expand(2, -1))
    grow(padded := GPT2LMHeadModel.from_pretrained(tiny_model), 298, 3)  # 5 rows were to spare
    trained = before[:295].mean(0)
    torch.testing.assert_close(padded.lm_head.weight[295:298], trained.expand(3, -1))
    assert torch.equal(padded.lm_head.weight[298:], before[298:])

    run = fit(*flags, "--trainer.max_steps=4", "--model.schedule_steps=4")
    part = fit(*flags, "--trainer.max_steps=2", "--model.schedule_steps=4")
    words.unlink()  # the checkpoint carries them
    main(["fit", f"--ckpt_path={part}", "--trainer.max_steps=4", *CALM])
    ours, whole = (
        torch.load(it / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for it in (part, run)
    )
    assert all(torch.equal(ours[name], it) for name, it in whole.items())
    assert whole["model.transformer.wte.weight"].shape == (302, 32)
    loaded = load(str(run), device="cpu")
    assert loaded.tokenizer("<|speaker|> said zyxwv")["input_ids"][0] == 301
    ids = loaded.tokenizer("a zyxwv b <|speaker|>")["input_ids"]
    assert {300, 301} <= set(ids)
    assert loaded.tokenizer.decode(ids) == "a zyxwv b <|speaker|>"
    main(["export", f"--model={run}", "--to=out"])
    main(["evaluate", "--model=out", f"--data.source={text}", "--split=all", "--context=16"])
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "flags", "found"),
    [
        ("new york\n", (), "line 1 ('new york') has white space"),
        ("\n\n", (), "it holds no token"),
        (None, (), "it cannot be read"),
        ("one\n", ("--model.pretrained=null",), "learns its own tokens"),
    ],
)
def test_tokens_that_cannot_be_added(
    content: str | None,
    flags: tuple[str, ...],
    found: str,
    tiny_model: Path,
    wiki_folder: Path,
    tmp_path: Path,
    mistake: Mistake,
) -> None:
    file = tmp_path / "tokens.txt"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    words = (*fine_tuning(wiki_folder, tiny_model), f"--data.add_tokens={file}", *flags)
    assert found in mistake("fit", *words)
