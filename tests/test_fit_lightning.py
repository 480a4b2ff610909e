"""docs/lightning.md: what its table says of each flag and class of Lightning's is so."""

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.plugins import precision

from gpt2_lightning.cli import main
from tests.command_line import CALM, Mistake, curves
from tests.corpus import wiki_rows

ROW = re.compile(r"\| `(\w+)` \| (works|refused|needs a GPU) \| `(.+?)` \| (.*) \|")

Rows = list[tuple[str, str, str]]

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


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, articles in (("train", 3), ("valid", 1), ("test", 1)):
        rows = "".join(wiki_rows(articles=articles))
        (folder / f"wiki.{name}.raw").write_text(rows, encoding="utf-8")
    return folder


@pytest.fixture
def small(text: Path, tiny_model: Path) -> list[str]:
    """Return the flags of a run of two steps."""
    return [
        *(f"--model.pretrained={tiny_model}", f"--data.source={text}", *CALM),
        *("--data.block_size=16", "--data.batch_size=2", "--samples.enabled=false"),
        "--model.sampling.max_new_tokens=4",
        *("--trainer.max_steps=2", "--trainer.log_every_n_steps=1"),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [(name, words) for name, verdict, words in ROWS if verdict != "refused"],
    ids=[name for name, verdict, _ in ROWS if verdict != "refused"],
)
# what Lightning and torch say of their own callbacks, profilers and single processes
@pytest.mark.filterwarnings("ignore")
def test_what_works(
    name: str, words: str, small: list[str], tmp_path: Path, tiny_model: Path
) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"), reason=f"{name} needs a package of its own")
    if words.startswith(("test: ", "predict: ")):
        verb, _, words = words.partition(": ")
        main(["fit", *small])
        (tmp_path / "prompts.txt").write_text("The old bridge\n")
        prompts = ["--data.prompts=prompts.txt"] if verb == "predict" else []
        main([verb, "--ckpt_path=last", *prompts, *shlex.split(words), *CALM])
        return
    main(["fit", *small, *shlex.split(words)])
    here = {path.name for path in tmp_path.iterdir()} - {"prompts.txt"}
    if name == "fast_dev_run":
        assert here == {"cache", "text"}
        return
    assert here == {"cache", "text", "lightning_logs"}
    run = tmp_path / "lightning_logs/version_0"
    assert (run / "checkpoints/last.ckpt").exists()  # a folder of shards with one strategy
    assert (run / "report.html").is_file()
    if name not in ("logger", "log_every_n_steps"):
        assert curves(run)["train/loss"]


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


def test_a_class_of_ones_own_may_have_a_name_of_lightnings(small: list[str]) -> None:
    main(["fit", *small, "--trainer.callbacks=tests.test_fit_lightning.LambdaCallback"])
    assert LambdaCallback.began


class LambdaCallback(callbacks.Callback):
    """A callback of the user's own, named as one of Lightning's that is refused."""

    began = False

    def on_train_start(self, *args: Any) -> None:
        """Note that it was called."""
        LambdaCallback.began = True
