"""docs/lightning.md: what its table says of each flag and class of Lightning's is so."""

import gc
import inspect
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from lightning.pytorch import Callback, Trainer, callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import precision

from gpt2_lightning.cli import main
from gpt2_lightning.fit.monitoring import ProgressBar
from gpt2_lightning.fit.time_limit import TimeLimit
from gpt2_lightning.fit.train import GPT2CLI
from tests.command_line import CALM, Mistake, curves, fit
from tests.corpus import wiki_rows

ROW = re.compile(r"\| `(\w+)` \| (works|refused|needs a GPU) \| `(.+?)` \| (.*) \|")

Rows = list[tuple[str, str, str]]

C = TypeVar("C", bound=Callback)

NEEDS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml"}


def table() -> dict[str, Rows]:
    """Return name, verdict and words of each row, by section."""
    text = (Path(__file__).parents[1] / "docs/lightning.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    rows = {it.partition("\n")[0]: ROW.findall(it) for it in sections}
    return {
        title: [(name, what, words) for name, what, words, _ in it] for title, it in rows.items()
    }


ROWS = [row for rows in table().values() for row in rows]


def blocks_of(batch: dict[str, Any]) -> int:
    """Count a batch's blocks, for the callback that measures throughput."""
    return len(batch["input_ids"])


def test_whatever_lightning_has_stands_in_the_table() -> None:
    has = {
        "Flags of the trainer": set(inspect.signature(Trainer).parameters),
        "Callbacks": set(callbacks.__all__),
        "Loggers": set(loggers.__all__),
        "Strategies": set(strategies.__all__),
        "Profilers": set(profilers.__all__),
        "Plugins": {*precision.__all__, *plugins.__all__},
    }
    assert {title: {name for name, *_ in rows} for title, rows in table().items()} == has


def write_text(folder: Path) -> Path:
    """Write a small text into a folder below one; return it."""
    text = folder / "text"
    text.mkdir()
    for name, articles in (("train", 3), ("valid", 1), ("test", 1)):
        rows = "".join(wiki_rows(articles=articles))
        (text / f"wiki.{name}.raw").write_text(rows, encoding="utf-8")
    return text


def two_steps(text: Path, model: Path) -> list[str]:
    """Return the flags of a run of two steps."""
    return [
        *(f"--model.pretrained={model}", f"--data.source={text}", *CALM),
        *("--data.block_size=16", "--data.batch_size=2", "--samples.enabled=false"),
        "--model.sampling.max_new_tokens=4",
        *("--trainer.max_steps=2", "--trainer.log_every_n_steps=1"),
    ]


@pytest.fixture
def small(tmp_path: Path, tiny_model: Path) -> list[str]:
    """Return the flags of a run of two steps, whose text is in the current folder."""
    return two_steps(write_text(tmp_path), tiny_model)


@pytest.fixture(scope="module")
def plain_losses(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[float]:
    """Return the losses of a run of two steps, without other words."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        main(["fit", *two_steps(write_text(folder), tiny_model)])
    return curves(folder / "lightning_logs/version_0")["train/loss"]


@dataclass
class Left:
    """What a command of the table left behind.

    Attributes:
        trainer: Lightning's.
        run: The run folder.
        screen: What stood on it, Lightning's own messages included.
        curves: As `curves` returns them.
    """

    trainer: Trainer
    run: Path
    screen: str
    curves: dict[str, list[float]]

    def callback(self, kind: type[C]) -> C:
        """Return the callback of a class itself; ours are subclasses of some."""
        return next(it for it in self.trainer.callbacks if type(it) is kind)  # type: ignore[attr-defined] # Lightning sets it

    def is_new(self, pattern: str) -> bool:
        """Tell whether there is one such file in the run folder."""
        return len(list(self.run.glob(pattern))) == 1

    def checkpoint(self) -> Any:
        """Return the last checkpoint."""
        return torch.load(self.run / "checkpoints/last.ckpt", weights_only=True)


def _epochs(left: Left) -> list[float]:
    return [round(epoch, 3) for epoch in left.curves["train/epoch"]]


def _number_of_validations(left: Left) -> int:
    return len(left.curves["val/loss"])


# what a row's words change, and nothing else does
EFFECTS: dict[str, Callable[[Left], object]] = {
    "accelerator": lambda it: isinstance(it.trainer.accelerator, CPUAccelerator),
    "strategy": lambda it: isinstance(it.trainer.strategy, strategies.DDPStrategy),
    "devices": lambda it: it.trainer.num_devices == 1,
    "num_nodes": lambda it: it.trainer.num_nodes == 1,
    "precision": lambda it: isinstance(it.trainer.precision_plugin, precision.MixedPrecision),
    "logger": lambda it: it.is_new("events.out.tfevents.*"),
    "callbacks": lambda it: it.callback(callbacks.Timer).time_elapsed("train") > 0,
    "max_epochs": lambda it: _epochs(it) == [0.333, 0.667, 1],
    "min_epochs": lambda it: _epochs(it) == [1, 2],
    "max_steps": lambda it: len(it.curves["train/loss"]) == 1,
    "min_steps": lambda it: len(it.curves["train/loss"]) == 2 and _number_of_validations(it) == 3,
    "max_time": lambda it: it.callback(TimeLimit).limit == 60,
    "limit_train_batches": lambda it: _epochs(it) == [1, 2],
    "limit_val_batches": lambda it: it.trainer.num_val_batches == [1],
    "limit_test_batches": lambda it: it.trainer.num_test_batches == [1],
    "limit_predict_batches": lambda it: it.trainer.num_predict_batches == [1],
    "overfit_batches": lambda it: _epochs(it) == [0.5, 1],
    "val_check_interval": lambda it: _number_of_validations(it) == 3,
    "check_val_every_n_epoch": lambda it: _number_of_validations(it) == 3,
    "num_sanity_val_steps": lambda it: _number_of_validations(it) == 1,  # no curve's beginning
    "log_every_n_steps": lambda it: "train/loss" not in it.curves,
    "enable_progress_bar": lambda it: it.callback(ProgressBar),
    "enable_model_summary": lambda it: "Total params" in it.screen,
    "accumulate_grad_batches": lambda it: it.trainer.fit_loop.total_batch_idx == 3,
    "gradient_clip_val": lambda it: it.trainer.gradient_clip_val == 1,
    "gradient_clip_algorithm": lambda it: it.trainer.gradient_clip_algorithm == "value",
    "deterministic": lambda it: torch.are_deterministic_algorithms_enabled(),
    "benchmark": lambda it: torch.backends.cudnn.benchmark,
    "inference_mode": lambda it: not it.trainer.fit_loop.epoch_loop.val_loop.inference_mode,
    "use_distributed_sampler": lambda it: _epochs(it) == [0.053, 0.105],  # all of the 19 batches
    "profiler": lambda it: "run_training_batch" in it.screen,
    "detect_anomaly": lambda it: it.trainer._detect_anomaly,  # Lightning names it nowhere else
    "plugins": lambda it: type(it.trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO",
    "default_root_dir": lambda it: it.trainer.default_root_dir == ".",
    "enable_autolog_hparams": lambda it: not (it.run / "hparams.yaml").read_text().strip("{}\n"),
    "EarlyStopping": lambda it: (
        float(it.callback(callbacks.EarlyStopping).best_score)
        == pytest.approx(min(it.curves["val/loss"]))
    ),
    "LearningRateMonitor": lambda it: it.curves["lr-AdamW/pg1"],
    "DeviceStatsMonitor": lambda it: it.curves["DeviceStatsMonitor.on_train_batch_end/cpu_percent"],
    "ThroughputMonitor": lambda it: it.curves["validate/samples"],
    "ModelSummary": lambda it: "Total params" in it.screen,
    "RichModelSummary": lambda it: "Total params" in it.screen,
    "TQDMProgressBar": lambda it: "Epoch 0: 100%" in it.screen,
    "RichProgressBar": lambda it: it.callback(callbacks.RichProgressBar).is_enabled,
    "Timer": lambda it: it.callback(callbacks.Timer).time_elapsed("train") > 0,
    "ModelCheckpoint": lambda it: it.is_new("checkpoints/epoch=0-step=2.ckpt"),
    "EMAWeightAveraging": lambda it: it.checkpoint()["averaging_state"],
    "WeightAveraging": lambda it: it.checkpoint()["averaging_state"],
    "TensorBoardLogger": lambda it: it.is_new("events.out.tfevents.*"),
    "CSVLogger": lambda it: not it.is_new("events.out.tfevents.*") and it.curves["train/loss"],
    "WandbLogger": lambda it: (it.run.parent / "wandb").is_dir(),
    "MLFlowLogger": lambda it: (it.run.parent / "mlflow.db").is_file(),
    "CometLogger": lambda it: (it.run.parent / "comet").is_dir(),
    "SingleDeviceStrategy": lambda it: isinstance(
        it.trainer.strategy, strategies.SingleDeviceStrategy
    ),
    "DDPStrategy": lambda it: isinstance(it.trainer.strategy, strategies.DDPStrategy),
    "ModelParallelStrategy": lambda it: (it.run / "checkpoints/last.ckpt/.metadata").is_file(),
    "SimpleProfiler": lambda it: it.is_new("fit-times.txt"),
    "AdvancedProfiler": lambda it: it.is_new("fit-times.txt"),
    "PyTorchProfiler": lambda it: it.is_new("fit-times-*.pt.trace.json"),
    "PassThroughProfiler": lambda it: (
        type(it.trainer.profiler) is profilers.PassThroughProfiler  # type: ignore[attr-defined] # Lightning sets it
    ),
    "MixedPrecision": lambda it: isinstance(it.trainer.precision_plugin, precision.MixedPrecision),
    "HalfPrecision": lambda it: isinstance(it.trainer.precision_plugin, precision.HalfPrecision),
    "DoublePrecision": lambda it: isinstance(
        it.trainer.precision_plugin, precision.DoublePrecision
    ),
    "AsyncCheckpointIO": lambda it: (
        type(it.trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO"
    ),
    "TorchCheckpointIO": lambda it: isinstance(
        it.trainer.strategy.checkpoint_io, plugins.TorchCheckpointIO
    ),
}

# these train otherwise; every other row takes the steps of a run without its words
OTHER_STEPS = {
    *("precision", "max_epochs", "min_epochs", "max_steps", "log_every_n_steps"),
    *("limit_train_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val"),
    *("MixedPrecision", "HalfPrecision", "DoublePrecision"),
}


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Return the trainers of the commands to come."""
    found: list[Trainer] = []
    build = GPT2CLI.instantiate_trainer

    def keep(self: GPT2CLI, **settings: Any) -> Any:
        found.append(build(self, **settings))
        return found[-1]

    monkeypatch.setattr(GPT2CLI, "instantiate_trainer", keep)
    return found


@pytest.mark.parametrize(
    ("name", "words"),
    [(name, words) for name, verdict, words in ROWS if verdict != "refused"],
    ids=[name for name, verdict, _ in ROWS if verdict != "refused"],
)
# what Lightning and torch say of their own callbacks, profilers and single processes
@pytest.mark.filterwarnings("ignore")
def test_what_works(
    name: str,
    words: str,
    small: list[str],
    tmp_path: Path,
    plain_losses: list[float],
    trainers: list[Trainer],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"), reason=f"{name} needs a package of its own")
    verb, _, flags = words.rpartition(": ")
    if verb:
        main(["fit", *small])
        (tmp_path / "prompts.txt").write_text("The old bridge\n")
        prompts = ["--data.prompts=prompts.txt"] if verb == "predict" else []
        main([verb, "--ckpt_path=last", *prompts, *shlex.split(flags), *CALM])
    else:
        main(["fit", *small, *shlex.split(words)])
    here = {path.name for path in tmp_path.iterdir()} - {"prompts.txt"}
    if name == "fast_dev_run":
        assert here == {"cache", "text"}
        return
    assert here == {"cache", "text", "lightning_logs"}
    run = tmp_path / "lightning_logs/version_0"
    assert (run / "checkpoints/last.ckpt").exists()  # a folder of shards with one strategy
    assert any((run / "checkpoints").glob("best-*"))
    assert (run / "report.html").is_file()
    said = capsys.readouterr()
    left = Left(trainers[-1], run, said.out + said.err + caplog.text, curves(run))
    assert EFFECTS[name](left)
    if name not in OTHER_STEPS:
        assert left.curves["train/loss"] == plain_losses


@pytest.mark.parametrize(
    ("name", "words"),
    [(name, words) for name, verdict, words in ROWS if verdict == "refused"],
    ids=[name for name, verdict, _ in ROWS if verdict == "refused"],
)
def test_what_is_refused(name: str, words: str, small: list[str], mistake: Mistake) -> None:
    message = mistake("fit", *small, *shlex.split(words))
    assert name in message
    assert not Path("lightning_logs").exists()


def test_a_logger_without_its_package(
    small: list[str], mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = "wandb is not here. HINT: pip install wandb"
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", _Lacking(lacking))
    message = mistake("fit", *small, "--trainer.logger=WandbLogger")
    assert message == f"error: --trainer.logger WandbLogger: {lacking}"


class _Lacking(str):
    """A package that is not installed, and what Lightning says of it."""

    def __bool__(self) -> bool:
        """Tell that it is not there."""
        return False


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-mixed"])
def test_precisions_of_a_gpu(precision: str, small: list[str], tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    flags = [
        "--trainer.accelerator=cuda",
        "--trainer.devices=1",
        f"--trainer.precision={precision}",
    ]
    main(["fit", *small, *flags])
    assert curves(tmp_path / "lightning_logs/version_0")["train/loss"]


def test_variables_of_the_environment(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Mistake,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PL_TRAINER_DEFAULT_ROOT_DIR", "there")
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "9")  # the flag goes before
    main(["fit", *small])
    assert len(curves(tmp_path / "there/lightning_logs/version_0")["train/loss"]) == 2
    said = capsys.readouterr().err
    assert "PL_TRAINER_DEFAULT_ROOT_DIR=there: taken for --trainer.default_root_dir." in said
    assert "PL_TRAINER_MAX_STEPS=9: overruled by --trainer.max_steps 2." in said
    monkeypatch.setenv("PL_TRAINER_MAX_STEP", "9")
    assert "PL_TRAINER_MAX_STEP: there is no flag --trainer.max_step" in mistake("fit", *small)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--trainer.logger MLFlowLogger --trainer.logger.tracking_uri https://me:pw@host",
            "set the variables MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
        (
            "--trainer.logger CometLogger --trainer.logger.api_key k",
            "set the variable COMET_API_KEY",
        ),
        ("--trainer.limit_train_batches 0.001", "0.001: of 19 batches that is less than one."),
        ("--trainer.limit_val_batches 0.001", "--trainer.limit_val_batches 0.001: of 8 batches"),
        ("--trainer.overfit_batches 0.1", "--trainer.overfit_batches 0.1: of 8 batches that is"),
        (
            "--trainer.callbacks EarlyStopping",
            "--trainer.callbacks EarlyStopping: it needs monitor. --trainer.callbacks.monitor "
            "val/loss after it would work.",
        ),
        (
            "--trainer.plugins MixedPrecision",
            "--trainer.plugins MixedPrecision: it needs precision and device. "
            "--trainer.plugins.precision bf16-mixed --trainer.plugins.device cpu after it",
        ),
        (
            "--trainer.callbacks ModelSummary --trainer.callbacks.max_depth x",
            "--trainer.callbacks.max_depth: expected a value of type int. Found: x",
        ),
        ("--trainer.callbacks Timer --trainer.callbacks.foo 3", "--trainer.callbacks.foo 3: the"),
        (
            "--trainer.strategy DDPStrategy",
            "a class goes by --trainer.strategy.class_path DDPStrategy",
        ),
        ("--trainer.strategy ddp_spawn", "--trainer.strategy ddp starts the command again"),
        (
            "--trainer.strategy.class_path DDPStrategy --trainer.strategy.start_method spawn",
            "--trainer.strategy ddp starts the command again",
        ),
        (
            "--trainer.num_nodes 2",
            "or set MASTER_ADDR, MASTER_PORT, NODE_RANK on each",
        ),
        (
            "--trainer.min_steps 3",
            "--trainer.min_steps 3: the run ends by --trainer.max_steps 2. Leave one of the two",
        ),
        (
            "--trainer.max_steps -1 --trainer.min_epochs 4",
            "--trainer.min_epochs 4: the run ends by --trainer.max_epochs 3. Leave one of the two",
        ),
        (
            "--trainer.min_epochs 1 --minutes 5",
            "--trainer.min_epochs 1: the run ends within --trainer.max_time 00:00:05:00 however",
        ),
        (
            "--early_stopping.min_delta 0.01",
            "--early_stopping.min_delta 0.01: without --early_stopping.patience it does nothing",
        ),
    ],
)
def test_secrets_and_what_would_do_nothing(
    words: str, message: str, small: list[str], mistake: Mistake
) -> None:
    assert message in mistake("fit", *small, *shlex.split(words))
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    "words",
    [
        "--trainer.profiler PyTorchProfiler",
        "--trainer.logger CSVLogger --trainer.logger.save_dir .",
        "--trainer.default_root_dir there",
    ],
)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_text_that_is_refused_leaves_nothing(
    words: str, small: list[str], tmp_path: Path, mistake: Mistake
) -> None:
    (tmp_path / "empty.txt").touch()
    message = mistake("fit", *small, "--data.source=empty.txt", *shlex.split(words))
    assert message.startswith("error: --data.source empty.txt: the file is empty.")
    gc.collect()
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "text", "empty.txt"}


def test_a_run_that_ends_by_its_steps_is_validated_whatever_its_minimum(small: list[str]) -> None:
    run = fit(*small, "--trainer.min_epochs=1")
    assert len(curves(run)["val/loss"]) == 2
    assert any((run / "checkpoints").glob("best-step2-*"))


def test_a_class_of_ones_own_may_have_a_name_of_lightnings(small: list[str]) -> None:
    main(["fit", *small, "--trainer.callbacks=tests.test_fit_lightning.LambdaCallback"])
    assert LambdaCallback.began


class LambdaCallback(callbacks.Callback):
    """A callback of the user's own, named as one of Lightning's that is refused."""

    began = False

    def on_train_start(self, *args: Any) -> None:
        """Note that it was called."""
        LambdaCallback.began = True
