"""W&B, MLflow and Comet have TensorBoard's curves: of two runs, one of which goes on.

They are the extra `trackers`, without which these tests are skipped.
"""

import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_lightning.cli import main
from tests.command_line import CALM, fine_tuning

LOGS = Path("lightning_logs")

Points = list[tuple[int, float]]
Curves = dict[str, dict[str, Points]]  # by run, then by name


def wandb_records(file: Path) -> Iterator[bytes]:
    """Yield the records of an offline run: LevelDB's log format, after a header of 7 bytes."""
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def of_wandb() -> Curves:
    from wandb.proto.wandb_internal_pb2 import Record

    found: Curves = {}
    for file in sorted(LOGS.glob("wandb/offline-run-*/*.wandb")):
        mine = found.setdefault(file.stem.removeprefix("run-"), {})
        for content in wandb_records(file):
            record = Record()
            record.ParseFromString(content)
            row = {
                it.key or "/".join(it.nested_key): json.loads(it.value_json)
                for it in record.history.item
            }
            step = row.pop("trainer/global_step", None)
            for name, value in row.items():
                if not name.startswith("_"):
                    mine.setdefault(name, []).append((int(step), float(value)))
    return found


def of_mlflow() -> Curves:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{LOGS}/mlflow.db")
    runs = client.search_runs([it.experiment_id for it in client.search_experiments()])
    return {
        run.info.run_id: {
            name: [
                (point.step, point.value)
                for point in client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        for run in runs
    }


def of_comet() -> Curves:
    found: Curves = {}
    for file in sorted(LOGS.glob("comet/*/*.zip")):
        with zipfile.ZipFile(file) as archive:
            run = json.loads(archive.read("experiment.json"))["offline_id"]
            lines = archive.read("messages.json").decode().splitlines()
        for message in map(json.loads, lines):
            if message["type"] == "metric_msg":
                metric = message["payload"]["metric"]
                if "/" not in metric["metricName"]:  # of the machine, by Comet itself
                    continue
                points = found.setdefault(run, {}).setdefault(metric["metricName"], [])
                points.append((metric["step"], float(metric["metricValue"])))
    return found


def of_tensorboard(run: Path) -> dict[str, Points]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.slow
# what the packages say of themselves
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "words", "read"),
    [
        ("wandb", ("WandbLogger", "offline=true"), of_wandb),
        ("mlflow", ("MLFlowLogger", "log_model=false"), of_mlflow),
        ("comet_ml", ("CometLogger", "online=false"), of_comet),
    ],
    ids=["wandb", "mlflow", "comet"],
)
def test_curves_are_those_of_tensorboard(
    package: str,
    words: tuple[str, str],
    read: Callable[[], Curves],
    wiki_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip(package, reason="the extra trackers has it")
    line = [
        *("fit", *fine_tuning(wiki_folder, tiny_model), *CALM, "--trainer.max_epochs=1"),
        *(f"--trainer.logger={words[0]}", f"--trainer.logger.{words[1]}"),
    ]
    main([*line, "--trainer.max_steps=3"])
    main([*line, "--trainer.max_steps=2", "--seed_everything=7"])
    main(["fit", f"--ckpt_path={LOGS}/version_0", "--trainer.max_steps=5", *CALM])
    assert {path.name for path in tmp_path.iterdir()} == {"lightning_logs", "cache", "wiki"}
    tracked = read()
    assert len(tracked) == 2
    for run in (LOGS / "version_0", LOGS / "version_1"):
        facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
        ((_, number),) = facts["trackers"]
        curves = of_tensorboard(run)
        assert tracked[number].keys() == curves.keys()
        for name, points in curves.items():
            there = sorted(tracked[number][name])
            assert [step for step, _ in there] == sorted(step for step, _ in points)
            for (_, value), (_, expected) in zip(there, sorted(points), strict=True):
                assert math.isclose(value, expected, rel_tol=1e-5)  # in fp32 in TensorBoard
