"""--trainer.max_time, by a clock that the batches turn."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from gpt2_lightning.cli import main
from gpt2_lightning.run_folder import read_scalars
from tests.command_line import CALM, curves, fine_tuning, fit

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
    monkeypatch.setattr("gpt2_lightning.fit.stop.time.monotonic", lambda: Clock.now)
    Clock.now, Clock.validation = 0.0, 0.0


def limited(text: Path, model: Path, seconds: int, *words: str) -> Path:
    return fit(
        *fine_tuning(text, model),
        f"--trainer.max_time=00:00:00:{seconds:02}",
        "--trainer.callbacks+=tests.test_fit_time_limit.Clock",
        "--trainer.limit_val_batches=4",
        "--trainer.num_sanity_val_steps=4",
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
    assert "Ended after step 10 of 537, by --trainer.max_time." in out
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
