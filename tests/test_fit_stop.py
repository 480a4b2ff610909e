import io
import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_lightning.checkpoint import is_whole
from gpt2_lightning.cli import main
from gpt2_lightning.export import hf_folder
from gpt2_lightning.model.module import GPT2Module
from tests.command_line import CALM, Mistake, curves, fine_tuning, run_forked
from tests.signals import SendSignal, fit_and_signal

RUN = Path("lightning_logs/version_0")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_leaves_a_run_that_can_be_used(
    number: int,
    code: int,
    wiki_folder: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sender = f"{{class_path: tests.signals.SendSignal, init_args: {{number: {number}, batch: 4}}}}"
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "fit",
                *fine_tuning(wiki_folder, tiny_model),
                *CALM,
                "--trainer.accumulate_grad_batches=3",
                "--trainer.log_every_n_steps=50",  # the first and the last step are logged
                f"--trainer.callbacks=[{sender}]",
            ]
        )
    assert stopped.value.code == code
    # micro-batch 4 is the second of the second step, which is taken whole
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    for name in ("loss", "grad_norm", "tokens_per_second"):
        assert len(curves(RUN)[f"train/{name}"]) == 2
    screen = capsys.readouterr().out
    assert f"generate --model {RUN}" in screen
    assert "Stopped after step 2. Go on with it:" in screen
    assert f"fit --ckpt_path {RUN}\n" in screen
    facts = json.loads((RUN / "facts.json").read_text(encoding="utf-8"))
    assert facts["steps"]["trained"] == 2
    main(["generate", f"--model={RUN}", "--prompt=the river", "--max_new_tokens=4"])
    assert capsys.readouterr().out.count("the river") == 3
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_outside_training(
    number: int,
    code: int,
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = GPT2Module.validation_step

    def stopping(self: GPT2Module, *args: object) -> None:
        plain(self, *args)  # type: ignore[arg-type] # handed through
        signal.raise_signal(number)

    monkeypatch.setattr(GPT2Module, "validation_step", stopping)
    with pytest.raises(SystemExit) as stopped:
        main(["validate", *fine_tuning(wiki_folder, tiny_model), *CALM])
    assert stopped.value.code == code


@pytest.mark.slow
def test_a_screen_that_has_gone_ends_no_run(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    def leave(self: SendSignal, *args: object) -> None:
        monkeypatch.setattr(sys, "stderr", Gone())
        send(self, *args)  # type: ignore[arg-type] # handed through

    send = SendSignal.on_train_batch_start
    monkeypatch.setattr(SendSignal, "on_train_batch_start", leave)
    number = int(signal.SIGINT)
    sender = f"{{class_path: tests.signals.SendSignal, init_args: {{number: {number}, batch: 1}}}}"
    words = [*fine_tuning(wiki_folder, tiny_model), *CALM, f"--trainer.callbacks=[{sender}]"]
    with pytest.raises(SystemExit):
        main(["fit", *words])
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_stop_before_training_leaves_nothing_to_use(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = GPT2Module.validation_step

    def stopping(self: GPT2Module, *args: object) -> None:
        plain(self, *args)  # type: ignore[arg-type] # handed through
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(GPT2Module, "validation_step", stopping)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *fine_tuning(wiki_folder, tiny_model), *CALM])
    assert stopped.value.code == 143
    assert not (RUN / "hf").exists()
    assert not (RUN / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_results_are_written(
    number: int,
    code: int,
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = hf_folder._verify_model

    def interrupted(*given: Any) -> None:
        signal.raise_signal(number)
        plain(*given)

    monkeypatch.setattr(hf_folder, "_verify_model", interrupted)
    found = signal.getsignal(number)
    words = [*fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_steps=2"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words])
    assert stopped.value.code == code
    assert (RUN / "hf/model.safetensors").is_file()
    assert (RUN / "report.html").is_file()
    assert not list(RUN.rglob("*.partial"))
    assert "what came of it is written first" in capsys.readouterr().err
    assert signal.getsignal(number) == found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "during"), [(signal.SIGTERM, "hf"), (signal.SIGINT, "report")])
def test_two_signals_while_the_results_are_written(
    number: int, during: str, wiki_folder: Path, tiny_model: Path
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_steps=2")
    done = run_forked(*words, call=partial(fit_and_signal, number, during))
    assert -done.returncode == number
    assert (RUN / "hf").exists() == (during == "report")
    assert not (RUN / "report.html").exists()
    assert not list(RUN.rglob("*.partial"))
    assert is_whole(RUN / "checkpoints/last.ckpt")


EARLY = (
    *("--trainer.max_epochs=1", "--trainer.val_check_interval=1", "--model.learning_rate=0"),
    *("--samples.enabled=false", "--trainer.limit_val_batches=2"),
)


@pytest.mark.slow
def test_validations_that_become_no_better_end_a_run(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *("fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *EARLY),
            "--early_stopping.patience=2",
        ]
    )
    why = "by --early_stopping.patience 2: 2 validation(s) without a better val/loss than "
    assert why in capsys.readouterr().out
    facts = json.loads((RUN / "facts.json").read_text(encoding="utf-8"))
    assert (facts["steps"]["trained"], facts["ended"]) == (3, "finished")
    assert "ended by --early_stopping.patience 2" in (RUN / "report.html").read_text("utf-8")
    main(["fit", "--ckpt_path=last", *CALM])
    said = capsys.readouterr().err
    assert "Nothing is left to train: the run is finished, after step 3." in said
    assert "--early_stopping.patience with more than 2 goes on" in said
    main(["fit", "--ckpt_path=last", "--early_stopping.patience=4", *CALM])
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_early_stopping_goes_by_the_monitor_of_the_checkpoints(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    words = ["fit", *fine_tuning(wiki_folder, tiny_model), *CALM]
    assert "--early_stopping.patience 0: must be >= 1" in mistake(
        *words, "--early_stopping.patience=0"
    )
    message = mistake(*words, "--early_stopping.patience=1", "--trainer.limit_val_batches=0")
    assert "--early_stopping.patience 1: it counts validations" in message
    # accuracy-like: what falls is worse
    chosen = ("--checkpoint.monitor=val/perplexity", "--checkpoint.mode=max")
    main([*words, *EARLY, *chosen, "--early_stopping.patience=1", "--model.learning_rate=1e-3"])
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    state = last["callbacks"]["run.early_stopping"]
    assert (state["monitor"], state["mode"], state["wait_count"]) == ("val/perplexity", "max", 1)
    assert last["global_step"] == 2
