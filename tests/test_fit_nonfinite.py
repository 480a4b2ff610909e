"""A step whose loss or gradients are no finite numbers is never taken."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from gpt2_lightning.cli import main
from gpt2_lightning.data.datamodule import WikiTextDataModule
from gpt2_lightning.logs import quieten
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.nonfinite import NotFinite, StepNorm
from gpt2_lightning.run_folder import find_checkpoint
from tests.command_line import CALM, curves, fine_tuning, fit, run_forked
from tests.test_fit_distributed import NO_DROPOUT, TWO, run

pytestmark = pytest.mark.slow

RUN = Path("lightning_logs/version_0")
STEPS = (
    "--trainer.max_steps=7",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=6",
    "--samples.enabled=false",
    "--model.learning_rate=3e-3",
    "--checkpoint.save_top_k=-1",
)
SKIP = "--model.on_nonfinite=skip"


def no_gradients(nats: Tensor) -> Tensor:
    nats.register_hook(lambda gradient: gradient * math.nan)
    return nats


SPOILT: dict[str, Any] = {
    "nan": lambda nats: nats * math.nan,
    "infinite loss, finite gradients": lambda nats: nats + math.inf,
    "finite loss, nan gradients": no_gradients,
}


class Spoil(Callback):
    """Spoils the loss of some steps, on one rank."""

    def __init__(self, steps: list[int], how: str = "nan", rank: int = 0) -> None:
        self.steps = steps
        self.how = how
        self.rank = rank

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Spoil it in the second micro-batch of a step alone."""
        here = trainer.global_step + 1 in self.steps and batch["ends_step"]
        if here and trainer.global_rank == self.rank:
            plain = GPT2Module.nats.__get__(pl_module)
            vars(pl_module)["nats"] = lambda batch: SPOILT[self.how](plain(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Leave the other steps, and the validation, as they are."""
        vars(pl_module).pop("nats", None)


def spoil(*steps: int, how: str = "nan", rank: int = 0) -> str:
    settings = json.dumps({"steps": steps, "how": how, "rank": rank})
    spoiling = f"class_path: tests.test_fit_nonfinite.Spoil, init_args: {settings}"
    return f"--trainer.callbacks=[{{{spoiling}}}]"


def content(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def weights_and_moments(checkpoint: dict[str, Any]) -> list[Tensor]:
    moments = checkpoint["optimizer_states"][0]["state"]
    return [
        *checkpoint["state_dict"].values(),
        *(value for number in sorted(moments) for value in moments[number].values()),
    ]


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    found, expected = weights_and_moments(ours), weights_and_moments(theirs)
    assert len(found) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("how", "figures"),
    [
        ("nan", "the gradient norm is nan (train/loss nan, learning rate "),
        ("infinite loss, finite gradients", "the gradient norm is nan (train/loss inf, "),
        ("finite loss, nan gradients", "the gradient norm is nan (train/loss 5."),
    ],
)
def test_the_run_stops_before_the_step(
    how: str,
    figures: str,
    wiki_folder: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *STEPS, "--trainer.log_every_n_steps=50")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words, spoil(5, how=how), *CALM])
    assert stopped.value.code == 2
    screen = capsys.readouterr()
    (error,) = [line for line in screen.err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: step 5: {figures}")
    for flag in ("--model.learning_rate below 0.003", "--trainer.gradient_clip_val 1.0", "skip"):
        assert flag in error
    assert "32-true" not in error  # it is
    assert "Traceback" not in screen.err
    assert f"Best model: {RUN / 'hf'}" in screen.out
    last = content(RUN / "checkpoints/last.ckpt")
    assert last["global_step"] == 3
    assert all(value.isfinite().all() for value in weights_and_moments(last))
    facts = json.loads((RUN / "facts.json").read_text(encoding="utf-8"))
    assert facts["ended"] == "not finite"
    assert facts["steps"]["trained"] == 4
    page = (RUN / "report.html").read_text(encoding="utf-8")
    assert "ended where its loss or gradients were not finite" in page
    main(["generate", f"--model={RUN}", "--prompt=the river", "--max_new_tokens=4"])


def test_a_validation_that_is_no_number_ends_the_run_and_is_not_saved(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def validation_nats(self: GPT2Module, batch: dict[str, Tensor]) -> Tensor:
        nats = plain(self, batch)
        return nats if self.training or self.global_step < 6 else nats * math.nan

    plain = GPT2Module.nats
    monkeypatch.setattr(GPT2Module, "nats", validation_nats)
    with pytest.raises(SystemExit) as stopped:
        fit(*fine_tuning(wiki_folder, tiny_model), *STEPS)
    assert stopped.value.code == 2
    assert "error: step 6: val/loss is nan. Nothing was saved" in capsys.readouterr().err
    assert content(RUN / "checkpoints/last.ckpt")["global_step"] == 3
    assert find_checkpoint("best", None).name.startswith("best-step3-")


def test_a_step_is_left_out_whole(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *STEPS)
    every = ("--checkpoint.every_n_train_steps=1", "--trainer.gradient_clip_val=1.0")
    done = fit(*words, *every, SKIP, spoil(1, 5))
    before, after, later = (
        content(next((done / "checkpoints").glob(f"step{n}.ckpt"))) for n in (4, 5, 7)
    )
    assert_same(after, before)
    assert after["lr_schedulers"][0]["last_epoch"] == 5
    assert after["datamodule_hyper_parameters"] == before["datamodule_hyper_parameters"]
    assert not torch.equal(weights_and_moments(later)[0], weights_and_moments(after)[0])
    assert content(done / "checkpoints/step1.ckpt")["optimizer_states"][0]["state"] == {}
    assert curves(done)["train/skipped_steps"] == [1, 2]
    assert math.isnan(curves(done)["train/loss"][4])
    facts = json.loads((done / "facts.json").read_text(encoding="utf-8"))
    assert (facts["steps"]["skipped"], facts["ended"]) == (2, "finished")
    assert "2 steps left out" in (done / "report.html").read_text(encoding="utf-8")
    assert "Left out: 2 of 7 steps" in capsys.readouterr().out


def test_a_device_leaves_a_step_out_before_the_host_knows(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *STEPS, "--trainer.log_every_n_steps=50")
    at_once = fit(*words, SKIP, spoil(3, 5))
    seen = []
    newest = 0

    def read(norm: StepNorm) -> float:
        seen.append((norm.step, newest))
        return float(norm.value)

    def waits_for(device: torch.device) -> bool:
        nonlocal newest
        newest += 1
        return True

    monkeypatch.setattr(StepNorm, "read", read)
    monkeypatch.setattr("gpt2_lightning.model.nonfinite.waits_for", waits_for)
    later = fit(*words, SKIP, spoil(3, 5))
    # logged steps, and those that are saved, are read at once; others while the next is computed
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)]
    states = [content(run / "checkpoints/last.ckpt") for run in (at_once, later)]
    assert_same(*states)
    assert states[0]["skipped_steps"] == states[1]["skipped_steps"] == 2
    for name in ("train/skipped_steps", "train/grad_norm", "val/loss"):
        assert curves(later)[name] == curves(at_once)[name]
    with pytest.raises(SystemExit) as stopped:
        fit(*words, spoil(5))
    assert stopped.value.code == 2
    assert "error: step 5: the gradient norm is nan (train/loss nan" in capsys.readouterr().err
    assert content(Path("lightning_logs/version_2/checkpoints/last.ckpt"))["global_step"] == 3


def test_ten_steps_in_a_row_are_left_out_no_more(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *STEPS, SKIP, "--trainer.max_steps=20")
    words = (*words, "--trainer.accumulate_grad_batches=1", "--checkpoint.every_n_train_steps=4")
    with pytest.raises(SystemExit) as stopped:
        fit(*words, spoil(2, *range(5, 20)))
    assert stopped.value.code == 2
    (error,) = [it for it in capsys.readouterr().err.splitlines() if it.startswith("error: ")]
    assert error.startswith("error: step 14: the gradient norm is nan (train/loss nan")
    assert ", in 10 steps in a row. --model.on_nonfinite skip leaves out no more" in error
    last = content(RUN / "checkpoints/last.ckpt")
    assert (last["global_step"], last["skipped_in_a_row"]) == (12, 8)
    with pytest.raises(SystemExit):  # a run that goes on counts on
        main(["fit", f"--ckpt_path={RUN}", spoil(*range(5, 20)), *CALM])
    assert "error: step 14: " in capsys.readouterr().err


def test_a_run_goes_on_exactly_after_a_step_left_out(wiki_folder: Path, tiny_model: Path) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *STEPS, "--model.schedule_steps=7")
    whole = fit(*words, SKIP, spoil(2, 5))
    part = fit(*words, SKIP, spoil(2, 5), "--trainer.max_steps=2")
    main(["fit", f"--ckpt_path={part}", "--trainer.max_steps=7", *CALM])
    with pytest.raises(SystemExit):
        fit(*words, spoil(5))
    stopped = Path("lightning_logs/version_2")
    main(["fit", f"--ckpt_path={stopped}", SKIP, *CALM])
    ours, theirs = (content(it / "checkpoints/last.ckpt") for it in (part, whole))
    assert_same(ours, theirs)
    assert ours["skipped_steps"] == theirs["skipped_steps"] == 2
    gone_on = content(stopped / "checkpoints/last.ckpt")
    assert (gone_on["skipped_steps"], gone_on["global_step"]) == (1, 7)
    assert_same(gone_on, content(fit(*words, SKIP, spoil(5)) / "checkpoints/last.ckpt"))


@pytest.mark.parametrize(("how", "stops"), [("finite loss, nan gradients", False), ("nan", True)])
def test_what_fp16_has_scaled_too_far_is_left_to_its_scaler(
    how: str, stops: bool, wiki_folder: Path, tiny_model: Path
) -> None:
    quieten()  # as the command line does
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=3,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        callbacks=[Spoil([2], how)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    module = GPT2Module(str(tiny_model), block_size=16)
    data = WikiTextDataModule(
        str(wiki_folder), tokenizer=str(tiny_model), block_size=16, batch_size=2
    )
    if stops:
        with pytest.raises(NotFinite, match=r"step 2: .* 32-true"):
            trainer.fit(module, data)
    else:
        trainer.fit(module, data)
        assert trainer.global_step == 3
        assert scaler.get_scale() == 512.0
    assert module.nonfinite.skipped == 0
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_two_processes_agree(mode: str, wiki_folder: Path, tiny_model: Path) -> None:
    words = (*fine_tuning(wiki_folder, tiny_model), *NO_DROPOUT, *STEPS, *TWO)
    words = ("fit", *words, f"--model.on_nonfinite={mode}", spoil(5, rank=1))
    done = run(*words) if mode == "stop" else run_forked(*words, processes=2)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    checkpoint = content(RUN / "checkpoints/last.ckpt")
    if mode == "stop":
        assert done.returncode == 2, done.stderr
        assert len(errors) == 1
        assert errors[0].startswith("error: step 5: the gradient norm is nan (train/loss nan")
        assert checkpoint["global_step"] == 3
    else:
        assert done.returncode == 0, done.stderr
        assert not errors
        assert (checkpoint["global_step"], checkpoint["skipped_steps"]) == (7, 1)
    assert all(value.isfinite().all() for value in weights_and_moments(checkpoint))
