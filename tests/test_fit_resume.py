"""A run that was stopped and went on is the run that was not, to the last bit."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from gpt2_lightning import run_folder
from gpt2_lightning.cli import main
from gpt2_lightning.data.tokenizer import cache_folder
from gpt2_lightning.run_folder import read_scalars
from tests.command_line import CALM, FitOnce, Mistake, curves, fine_tuning, fit

pytestmark = pytest.mark.slow

# 14 steps in all, two of accumulation, dropout 0.1, an epoch of 7 steps whose last is short
EPOCHS = ("--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2", "--data.batch_size=28")
SPEED = ("tokens_per_second", "flops_per_second", "memory_gb")


def words(text: Path, model: Path) -> tuple[str, ...]:
    return (*fine_tuning(text, model), *EPOCHS, "--model.learning_rate=3e-3")


def state(run: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert isinstance(loaded, dict)
    return loaded


def curves_of(run: Path) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in row.items() if not name.endswith(SPEED)}
        for step, row in read_scalars(run).items()
    }


def assert_same(run: Path, whole: Path) -> None:
    ours, theirs = state(run), state(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert ours.keys() == theirs.keys()
    found, expected = curves_of(run), curves_of(whole)
    for step, row in expected.items():  # a stop by max_steps adds a validation of its own
        assert {name: found[step].get(name) for name in row} == row, step
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for line in (whole / "samples.jsonl").read_text().splitlines():
        assert samples.count(json.loads(line)) == 1


@pytest.fixture
def whole(fit_once: FitOnce) -> Path:
    """The run that was not stopped."""
    return fit_once(*EPOCHS, "--model.learning_rate=3e-3")


def test_a_run_that_began_with_a_run(wiki_folder: Path, tiny_model: Path) -> None:
    first = fit(*words(wiki_folder, tiny_model), "--trainer.max_steps=1")
    same = [*words(wiki_folder, tiny_model), f"--model.pretrained={first}", *CALM]
    main(["fit", *same, "--trainer.max_steps=2"])
    main(["fit", *same, "--trainer.max_steps=3", "--ckpt_path=last"])
    checkpoint = Path("lightning_logs/version_1/checkpoints/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("steps", [3, 7, 10])
def test_after_max_steps(whole: Path, wiki_folder: Path, tiny_model: Path, steps: int) -> None:
    run = fit(*words(wiki_folder, tiny_model), f"--trainer.max_steps={steps}")
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=-1", *CALM])
    assert_same(run, whole)
    assert not list(Path("lightning_logs").glob("version_2"))


# micro-batch 4 is in the middle of a step; 12 and 13 make up the last of an epoch
@pytest.mark.parametrize("batch", [0, 4, 5, 12, 13])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal(
    whole: Path, wiki_folder: Path, tiny_model: Path, batch: int, number: int
) -> None:
    sender = f"{{class_path: tests.signals.SendSignal, init_args: {{number: {number}, "
    sender += f"batch: {batch}}}}}"
    with pytest.raises(SystemExit) as stopped:
        fit(*words(wiki_folder, tiny_model), f"--trainer.callbacks=[{sender}]")
    assert stopped.value.code == 128 + number
    run = Path("lightning_logs/version_1")
    assert state(run).keys() == state(whole).keys()
    main(["fit", f"--ckpt_path={run}", "--trainer.callbacks=null", *CALM])
    assert_same(run, whole)


def test_from_a_checkpoint_of_a_validation_in_the_middle(
    whole: Path, wiki_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = fit(
        *words(wiki_folder, tiny_model),
        "--trainer.val_check_interval=0.25",  # 3 micro-batches: rounded up to whole steps
        "--checkpoint.save_top_k=-1",
    )
    saved = {
        int(file.name.removeprefix("best-step").partition("-")[0]): file
        for file in (run / "checkpoints").glob("best-*.ckpt")
    }
    assert sorted(saved) == [2, 4, 6, 9, 11, 13, 14]
    for number in (2, 6, 11):
        alone = tmp_path / f"{number}.ckpt"  # away from its run folder it goes on in a new one
        saved[number].rename(alone)
        settings = ("--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2")
        other = fit(f"--ckpt_path={alone}", *settings, "--trainer.log_every_n_steps=1")
        ours, theirs = state(other), state(whole)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_from_a_checkpoint_of_before_an_option(
    whole: Path, wiki_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    old = {
        **{"max_new_tokens": 4, "do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.95},
        **{"num_return_sequences": 3, "seed": 0},
    }
    run = fit(*words(wiki_folder, tiny_model), "--trainer.max_steps=3")
    file, config = run / "checkpoints/last.ckpt", run / "config.yaml"
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["hyper_parameters"]["sampling"].keys() > old.keys()
    checkpoint["hyper_parameters"]["sampling"] = old
    torch.save(checkpoint, file)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["sampling"] = old
    config.write_text(yaml.safe_dump(settings))
    alone = tmp_path / "alone.ckpt"
    shutil.copy(file, alone)
    main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=-1", *CALM])
    assert_same(run, whole)
    main(["validate", f"--ckpt_path={alone}", *CALM])  # its settings from the checkpoint itself


@pytest.mark.parametrize(
    "flag",
    [
        "--trainer.accumulate_grad_batches=1",
        "--trainer.gradient_clip_val=0.1",
        "--trainer.max_epochs=5",
        "--trainer.precision=bf16-mixed",
        "--trainer.limit_train_batches=3",
        "--model.schedule_steps=99",
        "--model.weight_decay=0.5",
        "--data.cleaning=detokenize",
        "--data.tokenizer=elsewhere",
    ],
)
def test_flags_that_would_make_it_another_run(
    whole: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit) as refused:
        main(["fit", "--ckpt_path=last", flag, *CALM])
    assert refused.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    name = flag.partition("=")[0].removeprefix("--")
    assert {"model.schedule_steps": "schedule", "trainer.max_epochs": "max_epochs"}.get(
        name, name
    ) in message
    after = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    assert {file for file in before if before[file] != after[file]} <= {whole / "metrics.csv"}
    assert not list(Path("lightning_logs").glob("version_1"))


def test_validations_that_would_split_a_step(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        fit(*words(wiki_folder, tiny_model), "--trainer.val_check_interval=5")
    assert refused.value.code == 2
    assert "--trainer.val_check_interval 4 would work" in capsys.readouterr().err


def test_new_data_flags_are_held_to_what_they_were(
    mistake: Mistake, wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(*words(wiki_folder, tiny_model), "--trainer.max_steps=2", "--samples.enabled=false")
    last = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    names = ("documents", "validation_source", "test_source", "text_column")
    for in_checkpoint in (True, False):  # as of an earlier version, which did not have them
        for flag, value, before in (
            ("documents", "line", "file"),
            ("validation_source", "none", "None"),
            ("test_source", "none", "None"),
        ):
            message = mistake("fit", f"--ckpt_path={run}", f"--data.{flag}={value}", *CALM)
            assert f"--data.{flag} {value}: {last} was trained with {before}, and" in message
        if in_checkpoint:
            for name in names:
                del checkpoint["datamodule_hyper_parameters"][name]
            del checkpoint["hyper_parameters"]["lora"]["quantize"]
            torch.save(checkpoint, last)
            config = yaml.safe_load((run / "config.yaml").read_text())
            for name in names:
                del config["data"][name]
            (run / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    main(["fit", f"--ckpt_path={run}", "--trainer.max_steps=3", *CALM])
    assert "Going on after step 2." in capsys.readouterr().err
    assert torch.load(last, weights_only=True)["global_step"] == 3


def test_a_finished_run_says_that_nothing_is_left(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(
        *fine_tuning(wiki_folder, tiny_model), "--trainer.max_epochs=1", "--data.batch_size=28"
    )
    steps = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    capsys.readouterr()
    main(["fit", f"--ckpt_path={run}", *CALM])
    said = capsys.readouterr().err
    assert (
        f"Nothing is left to train: the run is finished, after step {steps}. To train longer, "
        f"begin a new run with these weights: --model.pretrained {run}, without --ckpt_path."
        in said
    )
    assert "Going on" not in said
    docs = Path(__file__).parents[1] / "docs/metrics.md"
    described = re.findall(r"^\| `(\w+/[\w*]+)`", docs.read_text(encoding="utf-8"), re.MULTILINE)
    tags = {name for name in curves(run) if not name.startswith("samples/")} - {"step"}
    assert tags <= set(described)


def test_the_list_of_known_runs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "NOTES_KEPT", 5)
    for number in range(40):
        run_folder.remember_run(Path(f"elsewhere/version_{number}/checkpoints"))
    run_folder.remember_settings("a: 1\n")
    lines = (cache_folder(None) / run_folder.RECORD).read_text(encoding="utf-8").splitlines()
    assert 5 <= len(lines) <= 10
    assert run_folder.are_own_settings("a: 1\n")
    assert '/version_39/checkpoints"' in "".join(lines)
