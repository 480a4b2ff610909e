"""A user's mistakes: one message, exit code 2, and nothing half-written."""

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from gpt2_lightning.cli import (
    BEFORE_VERBS,
    FOREIGN_VERBS,
    LIGHTNING_VERBS,
    OUR_VERBS,
    main,
)
from tests.command_line import CALM, Mistake, fine_tuning, fit

STOPS_EARLY = "{class_path: EarlyStopping, init_args: {monitor: val/loss}}"


def test_no_verb(mistake: Mistake) -> None:
    assert "no verb" in mistake()
    assert "fit" in mistake()


@pytest.mark.parametrize(
    ("verb", "ours"),
    [("fti", "fit"), ("train", "fit"), ("sample", "generate"), ("eval", "evaluate")],
)
def test_unknown_verb(verb: str, ours: str, mistake: Mistake) -> None:
    assert f"Did you mean {ours}?" in mistake(verb)


def test_foreign_verbs_are_none_of_ours() -> None:
    ours = {*BEFORE_VERBS, *LIGHTNING_VERBS, *OUR_VERBS}
    assert set(FOREIGN_VERBS.values()) <= ours
    assert not ours & set(FOREIGN_VERBS)


def test_config_before_the_verb(mistake: Mistake) -> None:
    message = mistake("--config", "a.yaml", "fit")
    assert "python -m gpt2_lightning fit --config" in message


def test_unknown_flag(mistake: Mistake) -> None:
    assert "Did you mean --model.learning_rate?" in mistake("fit", "--model.learning-rat=1")
    assert "Did you mean --top_k?" in mistake("generate", "--model=a", "--prompt=b", "--top_kk=3")


def test_missing_config(mistake: Mistake) -> None:
    assert "--config absent.yaml: there is no such file. Give" in mistake(
        "fit", "--config", "absent.yaml"
    )
    Path("recipes").mkdir()
    Path("recipes/finetune.yaml").write_text("data: {}\n", encoding="utf-8")
    hint = (
        "--config recipes/finetun.yaml: there is no such file. Did you mean --config recipes/fine"
    )
    for verb in ("fit", "generate", "evaluate", "inspect"):
        assert hint in mistake(verb, "--config", "recipes/finetun.yaml")
    message = mistake("fit", "--config=recipes")
    assert "--config recipes: is a folder." in message
    assert f"The folder {Path('recipes').resolve()} holds finetune.yaml" in message
    assert mistake("fit", "-c", "quikstart").endswith("Did you mean -c quickstart?")
    meant = "Did you mean --config finetune?"
    assert mistake("plan", "--config=configs/finetune.yaml").endswith(meant)
    assert "finetune, minutes, quickstart, scale/bf16" in mistake("fit", "--config", "xyz")


def test_wrong_type(mistake: Mistake) -> None:
    message = mistake("fit", "--data.block_size=many")
    assert "block_size" in message
    assert "many" in message


def test_wrong_choice(mistake: Mistake) -> None:
    message = mistake("fit", "--data.cleaning=tutoral")
    assert "cleaning" in message
    assert "tutorial" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--trainer.accelerator=gpu", "--trainer.accelerator gpu: torch finds none"),
        ("--trainer.max_steps=0", "--trainer.max_steps 0: nothing would be trained."),
        ("--trainer.max_epochs=0", "--trainer.max_epochs 0: nothing would be trained."),
        ("--samples.prompts=hello", 'expected a list, as ["hello"] or null. Found: hello'),
        ("--trainer.logger=CSVLoger", "expected the name of a Logger class or a value of type"),
        ("--model.betas=0.9", "--model.betas: expected a list, as [a, b]. Found: 0.9"),
        ("--model.learning_rate", "--model.learning_rate: it needs a value."),
        ("--trainer.max_epochs=three", "expected a value of type int or null. Found: three"),
        ("--model.learning_rate=-1", "--model.learning_rate -1.0: must be >= 0"),
        ("--model.learning_rate=.nan", "--model.learning_rate nan: must be >= 0"),
        ("--model.dropout=1.5", "--model.dropout 1.5: must be from 0 to 0.999"),
        ("--model.betas=[0.9,1.0]", "--model.betas [0.9, 1.0]: both must be"),
        ("--model.architecture.layers=2", "brings its own. Leave one of the two out"),
        ("--data.vocab_size=512", "--data.vocab_size: --model.pretrained"),
        (
            "--trainer.strategy=nope",
            "--trainer.strategy nope: not supported. Supported are auto, ddp (the",
        ),
        ("--trainer.precision=7", "--trainer.precision: expected one of 64, 32, 16, "),
        ("--trainer.accelerator=xyz", "--trainer.accelerator: "),
        ("--trainer.devices=abc", "--trainer"),
        ("--trainer.accelerator=tpu", "--trainer"),
        ("--trainer.val_check_interval=0", "--trainer.val_check_interval 0: must be > 0"),
        ("--trainer.check_val_every_n_epoch=0", "--trainer.check_val_every_n_epoch 0: must be"),
        ("--trainer.accumulate_grad_batches=0", "--trainer.accumulate_grad_batches 0: must be"),
        ("--trainer.max_epochs=-3", "--trainer.max_epochs -3: must be >= -1"),
        ("--checkpoint.monitor=foo", "--checkpoint.monitor foo: it is not measured"),
        (
            "--trainer.enable_checkpointing=false",
            "--checkpoint.save_top_k 0 with --checkpoint.save",
        ),
        ("--checkpoint.mode=up", "--checkpoint.mode up: must be min or max"),
        ("--checkpoint.save_top_k=-2", "--checkpoint.save_top_k -2: must be >= 0"),
        ("--seed_everything=true", "error: --seed_everything true: give a whole number"),
        ("--model.learning_rate=.inf", "--model.learning_rate inf: must be >= 0"),
        ("--model.architecture={layers: 2}", "--model.architecture: --model.pretrained"),
        ("--trainer.max_time=3m", "--trainer.max_time 3m: days, hours, minutes"),
        ("--trainer.val_check_interval=4000", "--trainer.val_check_interval 4000: it counts micro"),
        ("--trainer.limit_train_batches=-1", "limit_train_batches"),
        ("--trainer.val_check_interval=00:00:10:00", "00:00:10:00: must be a number"),
        (f"--trainer.callbacks=[{STOPS_EARLY}, {STOPS_EARLY}]", "more than one stateful callback"),
    ],
)
def test_flags_of_the_trainer(
    word: str,
    said: str,
    mistake: Mistake,
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert said in mistake("fit", *fine_tuning(wiki_folder, tiny_model), *CALM, word)
    assert not list(Path().glob("lightning_logs/*"))


def test_what_a_shell_makes_of_a_star(mistake: Mistake) -> None:
    message = mistake("fit", "--data.source", "a.txt", "b.txt", "c.txt")
    assert "error: b.txt ...: no flag stands before it" in message
    assert "give the folder" in message


def test_a_flag_that_is_missing(mistake: Mistake) -> None:
    assert (
        "--model, --to: must be given, such as --model lightning_logs/version_0 --to my_model."
        in mistake("export")
    )


def test_a_value_without_its_flag(mistake: Mistake) -> None:
    message = mistake("generate", "--model=a", "Once upon")
    assert 'Once ...: no flag stands before it. Did you mean --prompt "Once upon"?' in message
    Path("my book.txt").write_text("text", encoding="utf-8")
    assert "Did you mean --data.source 'my book.txt'?" in mistake("fit", "my book.txt")
    assert "Did you mean --model 'my book.txt'?" in mistake("evaluate", "my book.txt", "--model=a")
    Path("my.yaml").write_text("data: {}\n", encoding="utf-8")
    assert "Did you mean --config my.yaml?" in mistake("fit", "my.yaml")


@pytest.mark.slow
def test_a_run_that_is_not_there(mistake: Mistake, wiki_folder: Path, tiny_model: Path) -> None:
    fit(*fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_steps=1")
    message = mistake("generate", "--model=lightning_logs/version_7", "--prompt=a")
    assert "there is no such run; the newest one is lightning_logs/version_0" in message
    message = mistake("fit", "--model.pretrained=lightning_logs/version_7", "--data.source=builtin")
    assert "--model.pretrained lightning_logs/version_7: there is no such run" in message


@pytest.mark.slow
def test_a_run_without_a_best(mistake: Mistake, wiki_folder: Path, tiny_model: Path) -> None:
    run = fit(*fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_steps=1")
    for file in (run / "checkpoints").glob("best-*.ckpt"):
        file.unlink()
    assert "--ckpt_path last would work" in mistake("test", "--ckpt_path=best")
    message = mistake("generate", "--model=lightning_logs", "--prompt=a")
    assert "Give one of them: the newest is lightning_logs/version_0." in message


@pytest.mark.parametrize("name", ["../textz", "./a/b", "notes/book.pdf", "book.txt"])
def test_a_path_is_not_asked_of_the_hub(mistake: Mistake, tiny_model: Path, name: str) -> None:
    message = mistake("fit", *fine_tuning(Path("x"), tiny_model), *CALM, "--data.source", name)
    assert f"--data.source {name}: there is no such file or folder" in message


def test_an_empty_file(
    mistake: Mistake, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").touch()
    message = mistake("fit", *fine_tuning(tmp_path / "empty.txt", tiny_model), *CALM)
    assert "empty.txt: the file is empty. Give training text." in message
    assert capsys.readouterr().out.strip().splitlines() == [message]  # and nothing about its splits


def test_a_text_too_short_to_split(mistake: Mistake, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "line.txt").write_text("The old bridge.\n", encoding="utf-8")
    message = mistake("fit", *fine_tuning(tmp_path / "line.txt", tiny_model), *CALM)
    assert "the text is too short to hold out a validation split" in message


def test_missing_file(mistake: Mistake, tiny_model: Path) -> None:
    message = mistake("fit", *fine_tuning(Path("absent.txt"), tiny_model), *CALM)
    assert "--data.source absent.txt" in message


def test_folder_without_data(mistake: Mistake, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "photo.png").write_bytes(b"\x89PNG")
    message = mistake("fit", *fine_tuning(tmp_path / "empty", tiny_model), *CALM)
    assert "empty" in message
    assert "parquet" in message


def test_missing_column(mistake: Mistake, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": "words"}) + "\n")
    message = mistake("fit", *fine_tuning(tmp_path / "a.jsonl", tiny_model), *CALM)
    assert "--data.text_column text" in message
    assert "content" in message


def test_block_size_above_the_positions(
    mistake: Mistake, wiki_folder: Path, tiny_model: Path
) -> None:
    words = fine_tuning(wiki_folder, tiny_model)
    message = mistake("fit", *words, "--data.block_size=65", *CALM)
    assert "--data.block_size 65" in message
    assert "64" in message


@pytest.mark.slow
def test_tokenizer_larger_than_the_vocabulary(
    mistake: Mistake, tmp_path: Path, wiki_folder: Path, tiny_model: Path
) -> None:
    large = fit(
        f"--data.source={wiki_folder}",
        "--data.vocab_size=400",
        "--data.block_size=16",
        "--model.architecture={layers: 1, heads: 1, width: 8}",
        "--trainer.max_steps=1",
    )
    message = mistake(
        "fit", *fine_tuning(wiki_folder, tiny_model), f"--data.tokenizer={large / 'hf'}", *CALM
    )
    assert "--data.tokenizer" in message
    assert "300" in message


@pytest.mark.slow
def test_flags_that_contradict_the_checkpoint(
    mistake: Mistake, wiki_folder: Path, tiny_model: Path
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=2")
    fit(*words)
    for flag in ("--model.learning_rate=0.5", "--data.block_size=8", "--seed_everything=3"):
        message = mistake("fit", "--ckpt_path=last", flag, *CALM)
        assert flag.replace("=", " ") in message


def test_no_checkpoint_to_go_on_from(mistake: Mistake) -> None:
    assert "--ckpt_path last" in mistake("fit", "--ckpt_path=last", *CALM)
    assert "absent.ckpt" in mistake("validate", "--ckpt_path", "absent.ckpt", *CALM)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed_everything=-1",), "--seed_everything -1: must be from 0 to 4294967295."),
        (("--seed_everything=4294967296",), "must be from 0 to 4294967295."),
        (("--config=/",), "--config /: is a folder."),
        (("--model.decay_share=0.5",), "it does nothing without --model.schedule wsd."),
        (("--model.revision=main",), "it does nothing without a Hub id as --model.pretrained."),
        (("--data.remote_cache_gb=3",), "it does nothing without --data.remote_cache."),
        (("--data.prompts=a.txt",), "it does nothing without the verb predict."),
        (
            ("--samples.enabled=false", "--samples.prompts=[a]"),
            "--samples.prompts [a]: it does nothing without --samples.enabled true.",
        ),
        (("--model.dropout=1",), "--model.dropout 1.0: must be from 0 to 0.999."),
        (
            ("--model.sampling.temperature=0",),
            "--model.sampling.temperature 0.0: must be >= 0.000001 "
            "(--model.sampling.do_sample false for greedy).",
        ),
    ],
)
def test_settings_that_cannot_be_or_do_nothing(
    words: tuple[str, ...], message: str, wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    assert message in mistake("fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *words)
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("verb", "split"), [("validate", "val"), ("test", "test"), ("predict", "predict")]
)
def test_measuring_nothing(verb: str, split: str, tiny_model: Path, mistake: Mistake) -> None:
    assert f"{verb}: of which model? --ckpt_path last" in mistake(verb, *CALM)
    flag = f"--trainer.limit_{split}_batches"
    message = mistake(verb, f"--model.pretrained={tiny_model}", flag, "0", *CALM)
    assert message == f"error: {flag} 0: {verb} would do nothing. Give 1 or more, or null."
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "16"])
def test_fp16_on_a_cpu(mistake: Mistake, precision: str) -> None:
    message = mistake("fit", *CALM, f"--trainer.precision={precision}")
    assert f"--trainer.precision {precision}" in message
    assert "bf16-mixed" in message


@pytest.mark.slow
def test_nothing_left_after_cleaning(mistake: Mistake, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "marks.txt").write_text("?!\n...\n" * 50)
    words = fine_tuning(tmp_path / "marks.txt", tiny_model)
    message = mistake("fit", *words, "--data.cleaning=tutorial", *CALM)
    assert "--data.cleaning tutorial" in message


@pytest.mark.parametrize("where", ["footer", "inside"])
def test_corrupt_parquet(mistake: Mistake, tmp_path: Path, tiny_model: Path, where: str) -> None:
    table = pyarrow.table({"text": [f"row {n} of words" * 9 for n in range(500)]})
    file = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(table, file)
    content = bytearray(file.read_bytes())
    start = len(content) - 30 if where == "footer" else 40
    content[start : start + 20] = b"\xff" * 20
    file.write_bytes(content)
    message = mistake("fit", *fine_tuning(tmp_path, tiny_model), *CALM)
    assert str(file) in message


def test_invalid_utf8(mistake: Mistake, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "old.txt").write_bytes(b"good line\n" * 3 + b"caf\xe9\n")
    message = mistake("fit", *fine_tuning(tmp_path / "old.txt", tiny_model), *CALM)
    assert "old.txt" in message
    assert "byte 33" in message


def test_a_model_that_is_not_there(mistake: Mistake, wiki_folder: Path) -> None:
    message = mistake("fit", *fine_tuning(wiki_folder, Path("absent")), *CALM)
    assert "absent" in message
    message = mistake("generate", "--model=absent", "--prompt=a")
    assert "--model absent" in message


def test_generate_without_a_prompt(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    assert "--prompt" in mistake("generate", "--model=a")


def test_sampling_options_out_of_range(mistake: Mistake, tiny_model: Path) -> None:
    words = ("generate", f"--model={tiny_model}", "--prompt=a")
    for flag in ("--temperature=0", "--top_p=1.5", "--top_k=-1", "--max_new_tokens=0"):
        assert flag.replace("=", " ") in mistake(*words, flag)
    beams = ("--num_beams=2", "--do_sample=false")
    assert "positions" in mistake(*words, *beams, "--max_new_tokens=64")


def test_a_schedule_without_an_end(mistake: Mistake, wiki_folder: Path, tiny_model: Path) -> None:
    words = fine_tuning(wiki_folder, tiny_model)
    message = mistake("fit", *words, "--trainer.max_epochs=-1", *CALM)
    assert "--trainer.max_epochs" in message


def test_a_damaged_checkpoint(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"not a checkpoint")
    assert "a.ckpt" in mistake("generate", "--model=a.ckpt", "--prompt=a")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path=last", "--debug"])
    assert "Traceback" in capsys.readouterr().err
