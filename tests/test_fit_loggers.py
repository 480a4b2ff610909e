"""A run has one folder, whatever logs it: files, a second run, going on, and the look-ups."""

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from filelock import FileLock
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from gpt2_lightning.cli import main
from gpt2_lightning.fit.monitoring import TICKED
from gpt2_lightning.fit.run_folder import LOCK, keep_history, ready_loggers
from gpt2_lightning.run_folder import find_checkpoint
from tests.command_line import CALM, Mistake, fine_tuning

STEPS = ("--trainer.max_epochs=1", "--trainer.max_steps=2")
RUN = Path("lightning_logs/version_0")
TENSORBOARD = "{class_path: TensorBoardLogger, init_args: {save_dir: .}}"
CSV = "{class_path: CSVLogger, init_args: {save_dir: .}}"
TRACKER = "{class_path: tests.test_fit_loggers.Tracker}"


class Tracker(Logger):
    """Keeps its runs elsewhere, as W&B, MLflow and Comet do."""

    logged: ClassVar[dict[str, float]] = {}

    @property
    def name(self) -> str:
        """Name a project."""
        return "project"

    @property
    def version(self) -> str:
        """Name a run."""
        return "a1b2"

    @property
    def save_dir(self) -> str:
        """Name a folder that is no run's."""
        return "."

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep the newest value of each."""
        Tracker.logged |= metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep none."""


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def steps(run: Path) -> list[int]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [int(row["step"]) for row in csv.DictReader(stream)]


def events_of(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def hparams(events: EventAccumulator, part: str) -> Any:
    content = events.PluginTagToContent("hparams")[f"_hparams_/{part}"]
    return getattr(HParamsPluginData.FromString(content), part)


@pytest.mark.slow
@pytest.mark.parametrize(
    "logger",
    [
        "true",
        "CSVLogger",
        "false",
        TRACKER,
        f"[{TENSORBOARD}, {CSV}]",
        f"[{TRACKER}, {CSV}]",
        "{class_path: CSVLogger, init_args: {save_dir: logs, name: mine}}",
    ],
)
def test_a_run_goes_on_in_the_one_folder_that_it_has(
    logger: str, wiki_folder: Path, tiny_model: Path
) -> None:
    run = Path("logs/mine/version_0") if "mine" in logger else RUN
    here = {*Path().iterdir(), run.parents[-2]}
    main(
        ["fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS, f"--trainer.logger={logger}"]
    )
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 2
    assert {"hf/model.safetensors", "facts.json", "report.html", "checkpoints/last.ckpt"} <= files(
        run
    )
    before = steps(run) if logger != "false" else []
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=4", *CALM])
    main(["test", "--ckpt_path=best", *CALM])
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    if logger != "false":
        after = steps(run)
        assert after[: len(before)] == before  # nothing of its history is gone
        assert set(after) == {0, 1, 2, 3, 4}
    assert {path.name for path in Path().iterdir()} == {path.name for path in here} | {"cache"}
    if "Tracker" in logger:
        assert {"train/loss", "val/loss", "test/loss"} <= Tracker.logged.keys()


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["true", f"[{TENSORBOARD}, {CSV}]"])
def test_a_run_that_was_moved_goes_on_where_it_lies_now(
    logger: str, wiki_folder: Path, tiny_model: Path
) -> None:
    main(
        ["fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS, f"--trainer.logger={logger}"]
    )
    RUN.rename("moved")
    before = {Path(name).parent for name in files(Path("moved"))}
    main(["fit", "--ckpt_path=moved", "--trainer.max_steps=4", *CALM])
    assert {Path(name).parent for name in files(Path("moved"))} == before
    last = torch.load("moved/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert set(steps(Path("moved"))) == {0, 1, 2, 3, 4}
    assert not list(RUN.parent.iterdir())


@pytest.mark.slow
def test_a_run_with_damaged_facts_goes_on(
    wiki_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS])
    (RUN / "facts.json").write_text('{"started": "2026-')
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=4", *CALM])
    said = capsys.readouterr().err
    assert "facts.json cannot be read (" in said
    assert "facts.json begins anew." in said
    assert json.loads((RUN / "facts.json").read_text())["steps"]["trained"] == 4


@pytest.mark.slow
def test_a_second_run_has_a_folder_of_its_own(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    words = [*fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS]
    for _ in range(2):
        main(["fit", *words, f"--trainer.logger=[{TENSORBOARD}, {CSV}]"])
    assert sorted(path.name for path in RUN.parent.iterdir()) == ["version_0", "version_1"]
    config = RUN / "config.yaml"  # repeats the run, in a folder of its own
    main(["fit", f"--config={config}"])
    assert Path("lightning_logs/version_2/checkpoints/last.ckpt").is_file()
    message = mistake("fit", *words, "--trainer.logger.init_args.version=1")
    assert "lightning_logs/version_1: another run is kept there" in message


@pytest.mark.slow
def test_runs_below_a_root_of_their_own(
    wiki_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS]
    main(words)
    main([*words, "--trainer.default_root_dir=deep/D"])
    run = Path("deep/D/lightning_logs/version_0")
    assert (run / "hf/config.json").is_file()
    assert find_checkpoint("last").parent == (run / "checkpoints").absolute()
    assert find_checkpoint("last", "deep/D") == run / "checkpoints/last.ckpt"
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=4", *CALM])
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    # ModelCheckpoint knew its files again: of two best ones one is left
    assert len(list((run / "checkpoints").glob("best-*"))) == 1
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")  # another project has runs of its own
    with pytest.raises(Exception, match="no run in lightning_logs/ has a checkpoint"):
        find_checkpoint("last")


@pytest.mark.slow
def test_checkpoints_in_a_folder_of_their_own(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    words = ["fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS]
    main([*words, "--checkpoint.dirpath=kept", "--trainer.logger=false"])
    assert (RUN / "hf/config.json").is_file()
    assert find_checkpoint("last") == Path("kept/last.ckpt").absolute()
    assert "keeps its checkpoints in" in mistake("test", "--ckpt_path=best")


@pytest.mark.slow
def test_runs_are_compared_in_tensorboard(wiki_folder: Path, tiny_model: Path) -> None:
    words = [*fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS]
    main(["fit", *words, "--checkpoint.monitor=val/perplexity", "--model.learning_rate=1e-3"])
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=4", *CALM])
    small = "--model.architecture={layers: 1, heads: 1, width: 8}"
    main(["fit", *words[1:], "--data.vocab_size=300", small])  # from scratch
    assert len(list(RUN.rglob("events.*"))) == 2  # and no folder of their own
    assert len(list(RUN.glob("events.*"))) == 2
    tuned, scratch = (events_of(RUN.with_name(name)) for name in ("version_0", "version_1"))
    settings = hparams(tuned, "session_start_info").hparams
    assert settings["model.learning_rate"].number_value == 1e-3
    assert settings["model.pretrained"].string_value == str(tiny_model)
    assert "model.pretrained" not in hparams(scratch, "session_start_info").hparams
    columns = [
        [(it.name, it.type) for it in hparams(events, "experiment").hparam_infos]
        for events in (tuned, scratch)
    ]
    assert columns[0] == columns[1]  # TensorBoard takes them from one of the runs
    # as TensorBoard sorts them; it ticks the first five
    infos = hparams(tuned, "experiment").hparam_infos
    first = sorted(infos, key=lambda it: (not it.differs, it.name))[:5]
    assert {"model.learning_rate", "data.batch_size"} < {it.name for it in first} == set(TICKED)
    compared = [it.name.tag for it in hparams(tuned, "experiment").metric_infos]
    assert compared[:2] == ["val/perplexity_best", "val/loss_best"]
    for name in ("val/loss", "val/perplexity"):
        lowest = min(tuned.Scalars(name), key=lambda point: point.value)
        best = tuned.Scalars(f"{name}_best")[-1]
        assert (best.step, best.value) == (lowest.step, pytest.approx(lowest.value))


def test_a_run_has_one_folder(mistake: Mistake) -> None:
    words = ("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=.")
    message = mistake("fit", *words, "--trainer.logger.sub_dir=x")
    assert "--trainer.logger.sub_dir x: the files of a run lie in one folder. Leave" in message


def test_a_home_in_yaml_is_the_users(
    wiki_folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("mine.yaml").write_text("trainer: {default_root_dir: ~/x, logger: false}\n")
    main(["fit", "--config=mine.yaml", *fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS])
    assert (tmp_path / "home/x" / RUN / "hf/config.json").is_file()
    assert not Path("~").exists()


@pytest.mark.slow
def test_one_process_at_a_time_trains_in_a_run_folder(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake
) -> None:
    main(["fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *STEPS])
    assert not (RUN / LOCK).exists()
    with FileLock(RUN / LOCK):
        message = mistake("fit", "--ckpt_path=last", "--trainer.max_steps=4", *CALM)
        assert f"{RUN}: another process is training in this run folder" in message
        main(["test", "--ckpt_path=last", *CALM])  # reads, and writes nothing there
    main(["fit", "--ckpt_path=last", "--trainer.max_steps=4", *CALM])  # also beside a lock left


def test_a_logger_without_its_folder(mistake: Mistake) -> None:
    message = mistake("fit", "--trainer.logger+=CSVLogger")
    assert "CSVLogger: it needs save_dir. --trainer.logger.save_dir . after it would" in message


def test_versions_are_shared_and_never_those_of_an_earlier_run() -> None:
    Path("csv/lightning_logs/version_4").mkdir(parents=True)
    loggers: list[Logger] = [TensorBoardLogger("."), CSVLogger("csv"), CSVLogger(".")]
    ready_loggers(loggers, None)
    assert [logger.version for logger in loggers] == [5, 5, 5]
    named: list[Logger] = [TensorBoardLogger(".", version="mine"), CSVLogger("csv")]
    ready_loggers(named, None)
    assert named[1].version == "mine"


# said of what is prevented here; `quieten` keeps it off the screen
@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize("killed", [False, True])
def test_the_history_of_a_csv_logger_is_kept(killed: bool) -> None:
    logger = CSVLogger(".", version=0)
    logger.log_metrics({"val/loss": 5.0}, 0)
    logger.save()
    file = Path(logger.log_dir, "metrics.csv")
    file.write_text(file.read_text() + "1,4.")  # its last line was cut short
    if killed:  # while the history was set aside
        file.rename(file.with_suffix(".csv.earlier"))
    again = CSVLogger(".", version=0)
    keep_history(again)
    again.log_metrics({"train/loss": 4.0}, 1)
    again.save()
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["step"], row["val/loss"], row["train/loss"]) for row in rows] == [
        ("0", "5.0", ""),
        ("1", "", "4.0"),
    ]
    assert not file.with_suffix(".csv.earlier").exists()
