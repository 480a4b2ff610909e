"""--trainer.max_time, by a clock that the batches turn."""

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, Trainer

from gpt2_lightning.cli import main
from gpt2_lightning.run_folder import read_scalars
from tests.command_line import CALM, Mistake, curves, fine_tuning, fit

pytestmark = pytest.mark.slow


class Clock(Callback):
    """Takes `validation` seconds for a batch of validation and one second for a training batch."""

    now = 0.0
    validation = 0.0

    def on_validation_batch_start(self, *args: Any) -> None:
        """Turn the clock."""
        Clock.now += Clock.validation

    def on_train_batch_end(self, *args: Any) -> None:
        """Turn the clock."""
        Clock.now += 1.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2_lightning.fit.time_limit.time.monotonic", lambda: Clock.now)
    Clock.now, Clock.validation = 0.0, 0.0


def limited(text: Path, model: Path, seconds: int, *words: str) -> Path:
    return fit(
        *fine_tuning(text, model),
        f"--trainer.max_time=00:00:00:{seconds:02}",
        "--trainer.callbacks+=tests.test_fit_time_limit.Clock",
        "--trainer.limit_val_batches=4",
        "--trainer.num_sanity_val_steps=4",
        "--model.schedule=constant",
        *words,
    )


def test_the_last_validation_ends_within_the_time(wiki_folder: Path, tiny_model: Path) -> None:
    Clock.validation = 2.0  # 8 s before training, 8 s at the end: 14 of 30 are left, step by step
    run = limited(wiki_folder, tiny_model, 30, "--trainer.log_every_n_steps=10")
    assert curves(run)["step"][-1] == 14
    assert Clock.now == 30
    table = read_scalars(run)
    for name in ("loss", "grad_norm", "tokens_per_second"):  # the last one, early as it came
        assert {step for step, row in table.items() if f"train/{name}" in row} == {1, 10, 14}


def test_a_validation_is_the_last_one_where_no_other_fits_after_it(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock.validation = 2.0
    run = limited(wiki_folder, tiny_model, 30, "--trainer.val_check_interval=10")
    assert curves(run)["step"][-1] == 10
    assert Clock.now == 26
    out = "".join(capsys.readouterr())
    assert "Ended after step 10, by --trainer.max_time." in out
    assert "Time limit reached" not in out


def test_a_run_that_cannot_keep_its_time_says_so_before_training(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Clock.validation = 10.0
    run = limited(wiki_folder, tiny_model, 30)
    assert curves(run)["step"][-1] == 1
    out = capsys.readouterr().out
    assert (
        "A validation takes about 40 s; one before training and one at the end take 1 min 20 s of "
        "--trainer.max_time 30 s, so this run takes longer than that. --trainer.limit_val_batches "
        "0.03 shortens them." in out
    )


def test_a_resumed_run_has_the_whole_time_again(wiki_folder: Path, tiny_model: Path) -> None:
    run = limited(wiki_folder, tiny_model, 20)
    main(["fit", f"--ckpt_path={run}", *CALM])
    assert curves(run)["step"][-1] == 40


class Slow(Callback):
    """Lets each step from the 20th on take two seconds more."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Turn the clock."""
        Clock.now += 2.0 * (trainer.global_step >= 20)


class Quick(Callback):
    """Lets each step from the 20th on take half a second."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Turn the clock."""
        Clock.now -= 0.5 * (trainer.global_step >= 20)


class Terminated(Callback):
    """Sends SIGTERM to this process in step 40."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Send it."""
        if trainer.global_step == 39:
            signal.raise_signal(signal.SIGTERM)


def timed(text: Path, model: Path, *words: str) -> Path:
    """Train for 100 seconds of the clock, of which the validations at begin and end take 8."""
    return fit(*timed_words(text, model), *words)


def timed_words(text: Path, model: Path) -> tuple[str, ...]:
    Clock.validation = 1.0
    return (
        *fine_tuning(text, model),
        "--minutes=1.6667",
        "--trainer.callbacks+=tests.test_fit_time_limit.Clock",
        "--trainer.limit_val_batches=4",
        "--trainer.val_check_interval=1000",
        "--trainer.check_val_every_n_epoch=null",
        "--trainer.gradient_clip_val=1.0",
    )


def changes(run: Path) -> list[list[int]]:
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert settings["trainer"]["max_time"] is None
    found: list[list[int]] = settings["model"]["schedule_changes"]
    return found


@pytest.mark.parametrize("shape", ["linear", "cosine", "wsd"])
def test_the_schedule_ends_with_the_time(
    shape: str, wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = timed(wiki_folder, tiny_model, f"--model.schedule={shape}", "--model.warmup_steps=5")
    rates = curves(run)["train/learning_rate"]
    assert 90 <= Clock.now <= 100
    assert max(rates) == pytest.approx(5e-4)
    assert rates[-1] < 0.1 * max(rates)
    last = changes(run)[-1][1]
    assert last == len(rates) == curves(run)["step"][-1]
    out = capsys.readouterr().out
    assert f"{last:,} steps of 1 s fit the time; the schedule ends with the last." in out
    assert "In so few steps smaller ones learn more: of 1 block(s) instead of 2" in out


def test_a_warm_up_longer_than_the_run_is_shortened(wiki_folder: Path, tiny_model: Path) -> None:
    run = timed(wiki_folder, tiny_model, "--model.warmup_steps=1000")
    assert changes(run)[0][0] == 0
    assert max(curves(run)["train/learning_rate"]) == pytest.approx(5e-4)


def test_a_run_is_repeated_by_its_settings(wiki_folder: Path, tiny_model: Path) -> None:
    first = timed(wiki_folder, tiny_model, "--model.warmup_steps=20")
    again = fit(f"--config={first / 'config.yaml'}")
    for name in ("train/learning_rate", "train/loss", "val/loss"):
        assert curves(again)[name] == curves(first)[name]


@pytest.mark.parametrize(("pace", "least", "most"), [("Slow", 30, 50), ("Quick", 110, 170)])
def test_a_run_of_another_pace_than_measured_is_fitted_again(
    pace: str, least: int, most: int, wiki_folder: Path, tiny_model: Path
) -> None:
    run = timed(wiki_folder, tiny_model, f"--trainer.callbacks+=tests.test_fit_time_limit.{pace}")
    rates = curves(run)["train/learning_rate"]
    assert 85 <= Clock.now <= 100
    assert least <= len(rates) == changes(run)[-1][1] <= most
    assert rates[-1] < 0.1 * max(rates)
    jumps = [before - after for before, after in pairwise(rates)]
    assert max(jumps) < 0.1 * max(rates)


def test_a_stopped_run_goes_on_with_the_same_schedule(wiki_folder: Path, tiny_model: Path) -> None:
    whole = timed(wiki_folder, tiny_model)
    Clock.now = 0.0
    with pytest.raises(SystemExit):
        timed(wiki_folder, tiny_model, "--trainer.callbacks+=tests.test_fit_time_limit.Terminated")
    (run,) = set(Path("lightning_logs").glob("*")) - {whole}
    assert curves(run)["step"][-1] == 40
    main(["fit", f"--ckpt_path={run}", "--trainer.callbacks=null", *CALM])
    for name in ("train/learning_rate", "train/loss"):
        assert curves(run)[name] == curves(whole)[name]
    assert changes(run) == changes(whole)


def test_a_restart_by_the_same_line_does_not_put_the_end_off(
    wiki_folder: Path, tiny_model: Path
) -> None:
    whole = timed(wiki_folder, tiny_model)
    Clock.now = 0.0
    line = ("fit", *timed_words(wiki_folder, tiny_model), *CALM)
    line = (*line, "--run_name=again", "--ckpt_path=auto")
    with pytest.raises(SystemExit):
        main([*line, "--trainer.callbacks+=tests.test_fit_time_limit.Terminated"])
    main([*line])
    run = Path("lightning_logs/again")
    assert changes(run) == changes(whole)
    assert curves(run)["train/loss"] == curves(whole)["train/loss"]


def test_what_ends_before_the_time_is_as_without_it(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = timed(wiki_folder, tiny_model, "--trainer.max_steps=30")
    out = capsys.readouterr().out
    assert "The run ends after about 34 s of 1 min 40 s, with --trainer.max_epochs or" in out
    plain = fit(*fine_tuning(wiki_folder, tiny_model), "--trainer.max_steps=30")
    assert curves(run)["train/learning_rate"] == curves(plain)["train/learning_rate"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--minutes=0",), "--minutes 0: must be > 0."),
        (("--minutes=nan",), "--minutes: expected a value of type float"),
        (("--minutes=5", "--trainer.max_time=00:00:05:00"), "--trainer.max_time 00:00:05:00 says"),
    ],
)
def test_minutes_that_say_nothing_are_refused(
    words: tuple[str, ...], message: str, wiki_folder: Path, mistake: Mistake
) -> None:
    assert message in mistake("fit", f"--data.source={wiki_folder}", *words)
