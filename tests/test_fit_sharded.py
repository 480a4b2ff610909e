"""Sharded training (FSDP2): two processes with half of the model each are one with the whole."""

import errno
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from traceback import StackSummary
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from gpt2_lightning.checkpoint import load_shards, read_checkpoint
from gpt2_lightning.cli import main
from gpt2_lightning.errors import UsageError
from gpt2_lightning.fit import sharding
from gpt2_lightning.generate.text_model import load_checkpoint
from tests.command_line import CALM, Mistake, curves, fine_tuning, fit, run_forked
from tests.corpus import wiki_rows
from tests.test_fit_distributed import NO_DROPOUT, TWO, run

SHARDED = (*TWO, "--trainer.strategy=fsdp2")
STEPS = (
    *NO_DROPOUT,
    "--trainer.max_steps=20",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.gradient_clip_val=0.5",
    "--trainer.val_check_interval=20",
    "--checkpoint.save_top_k=-1",
    "--checkpoint.every_n_train_steps=5",
    "--model.learning_rate=3e-3",
    "--model.weight_decay=0.1",
    "--model.on_nonfinite=skip",
)
SPOILT = 7  # the step that is left out


class SpoilGradient(Callback):
    """Spoils a gradient in one step; of a sharded one, the last shard alone."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Spoil it."""
        gradient = next(pl_module.parameters()).grad
        if trainer.global_step + 1 != SPOILT or gradient is None:
            return
        if not isinstance(gradient, DTensor):
            gradient.fill_(math.nan)
        elif trainer.global_rank == trainer.world_size - 1:
            gradient.to_local().fill_(math.nan)


def callbacks(*more: str) -> str:
    spoiling = "{class_path: tests.test_fit_sharded.SpoilGradient}"
    return f"--trainer.callbacks=[{', '.join((spoiling, *more))}]"


def stop_at(batch: int) -> str:
    """Send SIGTERM to rank 1 as a micro-batch begins."""
    sending = f"init_args: {{number: 15, batch: {batch}, rank: 1}}"
    return f"{{class_path: tests.signals.SendSignal, {sending}}}"


def weights(run: Path, file: str = "last.ckpt") -> dict[str, Tensor]:
    found: dict[str, Tensor] = read_checkpoint(run / "checkpoints" / file)["state_dict"]
    return found


def flops_per_token(run: Path) -> float:
    columns = curves(run)
    flops = columns["train/model_flops_per_second"][0]
    return flops / columns["train/tokens_per_second"][0]


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


class Runs:
    """The same 20 steps, run in five ways."""

    one = Path("lightning_logs/one")
    ddp = Path("lightning_logs/ddp")
    fsdp = Path("lightning_logs/fsdp")  # checkpoints in one file
    shards = Path("lightning_logs/shards")  # in shards; stopped by SIGTERM, and gone on with
    said: dict[str, str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Runs]:
    """Run them in a folder of their own."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "wiki.txt").write_text("".join(wiki_rows(articles=30)), encoding="utf-8")
    words = (*fine_tuning(folder / "wiki.txt", tiny_model), *STEPS)
    two = ("fit", *words, "--data.batch_size=3")
    found = Runs()
    in_two = partial(run_forked, processes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        fit(*words, "--data.batch_size=6", "--run_name=one", callbacks())
        in_shards = (
            "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
            "--trainer.strategy.save_distributed_checkpoint=true",
        )
        done = {
            "ddp": in_two(*two, *TWO, "--run_name=ddp", callbacks()),
            "fsdp": run(*two, *SHARDED, "--run_name=fsdp", callbacks()),
            "stopped": in_two(*two, *TWO, *in_shards, "--run_name=shards", callbacks(stop_at(25))),
            "gone on": in_two("fit", f"--ckpt_path={found.shards}"),
        }
        for name, process in done.items():
            assert process.returncode == (143 if name == "stopped" else 0), process.stderr
        found.said = {name: process.stdout + process.stderr for name, process in done.items()}
        for name in ("one", "ddp", "fsdp", "shards"):
            setattr(found, name, folder / getattr(found, name))
        yield found


@pytest.fixture
def beside_them(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where the runs began."""
    folder = runs.one.parents[1]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


@pytest.mark.slow
def test_steps_are_those_of_copies_and_of_one_process(runs: Runs) -> None:
    theirs = curves(runs.one)
    assert len(theirs["train/loss"]) == 20
    assert sum(norm > 0.5 for norm in theirs["train/grad_norm"]) > 10  # they are clipped
    for other in (runs.ddp, runs.fsdp, runs.shards):
        ours = curves(other)
        for name in ("train/loss", "train/grad_norm", "val/perplexity", "train/skipped_steps"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, nan_ok=True)
        assert ours["train/tokens_seen"] == theirs["train/tokens_seen"]
        assert distance(weights(other), weights(runs.one)) < 1e-5
        assert math.isnan(ours["train/grad_norm"][SPOILT - 1])


@pytest.mark.slow
def test_counts_are_those_of_the_whole_model(runs: Runs, tiny_model: Path) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    for folder in (runs.one, runs.ddp, runs.fsdp, runs.shards):
        assert json.loads((folder / "facts.json").read_text())["model"]["parameters"] == whole
        assert flops_per_token(folder) == pytest.approx(flops_per_token(runs.one), rel=1e-5)
    assert f"{whole:,} parameters" in runs.said["fsdp"]


@pytest.mark.slow
def test_samples_and_surprisals_are_those_of_copies(runs: Runs) -> None:
    samples = [(it / "samples.jsonl").read_text() for it in (runs.ddp, runs.fsdp, runs.shards)]
    assert samples[0].count("\n") == 27  # of three prompts, three seeds, three validations
    assert set(samples) == {samples[0]}
    rows = [
        [json.loads(line) for line in (run / "surprisal.jsonl").read_text().splitlines()]
        for run in (runs.ddp, runs.fsdp)
    ]
    for theirs, ours in zip(*rows, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["nats"] == pytest.approx(theirs["nats"], abs=2e-4)  # of four decimals


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(runs: Runs) -> None:
    assert "Going on after step 13." in runs.said["gone on"]
    assert distance(weights(runs.shards), weights(runs.fsdp)) == 0
    ours, theirs = curves(runs.shards), curves(runs.fsdp)
    for name in ("train/loss", "val/loss"):
        assert ours[name] == theirs[name]


@pytest.mark.slow
def test_checkpoints_and_hf_are_the_same_model(runs: Runs, tmp_path: Path) -> None:
    last = runs.shards / "checkpoints/last.ckpt"
    assert len(list(last.glob("*.distcp"))) == 2
    assert torch.load(runs.fsdp / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 20
    ids = torch.arange(60).reshape(1, -1)
    main(["export", f"--model={last}", f"--to={tmp_path / 'out'}"])
    with torch.inference_mode():
        expected = load_checkpoint(last).model.eval()(ids).logits
        for folder in (tmp_path / "out", runs.shards / "hf", runs.fsdp / "hf"):
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            assert torch.equal(model(ids).logits, expected)
            assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.slow
def test_evaluations_and_texts_are_those_of_copies(
    runs: Runs, beside_them: None, capsys: pytest.CaptureFixture[str]
) -> None:
    perplexities, texts = [], []
    for model in (runs.ddp, runs.fsdp, runs.fsdp / "hf", runs.shards / "checkpoints/last.ckpt"):
        text = ("--data.source=wiki.txt", "--split=validation", "--output=card.json")
        main(["evaluate", f"--model={model}", *text, "--device=cpu"])
        perplexities.append(json.loads(Path("card.json").read_text())["token_perplexity"])
        capsys.readouterr()
        main(["generate", f"--model={model}", "--prompt=The river", "--seed=3", "--device=cpu"])
        texts.append(capsys.readouterr().out)
    assert perplexities == pytest.approx([perplexities[0]] * 4, rel=1e-5)
    assert set(texts) == {texts[0]}


@pytest.mark.slow
def test_a_run_changes_its_strategy(runs: Runs, beside_them: None) -> None:
    """The optimizer's state is taken by names: ddp's numbers follow groups, ours the model."""
    ways = ((runs.fsdp, "auto"), (runs.ddp, "fsdp2"), (runs.shards, "fsdp2"))
    for other, strategy in ways:
        assert distance(weights(other, "step5.ckpt"), weights(other)) > 1e-3
        words = ("--trainer.devices=1", f"--trainer.strategy={strategy}", *CALM)
        accumulate = "--trainer.accumulate_grad_batches=4"
        file = other / "checkpoints/step5.ckpt"
        main(["fit", f"--ckpt_path={file}", *words, accumulate])
        assert distance(weights(other), weights(runs.one)) < 1e-5


@pytest.mark.slow
def test_the_weights_as_they_stand(wiki_folder: Path, tiny_model: Path) -> None:
    folder = fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=2",
        "--trainer.strategy=fsdp2",
        "--checkpoint.save_top_k=0",
        "--checkpoint.save_last=false",
    )
    found = AutoModelForCausalLM.from_pretrained(folder / "hf").state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert 0 < distance(found, before) < 0.1


@pytest.mark.slow
def test_weights_alone_are_measured(wiki_folder: Path, tiny_model: Path) -> None:
    folder = fit(
        *fine_tuning(wiki_folder, tiny_model),
        "--trainer.max_steps=2",
        "--trainer.strategy=fsdp2",
        "--checkpoint.save_weights_only=true",
    )
    main(["validate", f"--ckpt_path={folder}", *CALM])


@pytest.mark.slow
def test_a_run_in_shards_is_measured_by_any_strategy(
    runs: Runs, beside_them: None, mistake: Mistake
) -> None:
    words = (f"--ckpt_path={runs.shards / 'checkpoints/step5.ckpt'}", "--trainer.devices=1")
    main(["validate", *words, "--trainer.strategy=auto", *CALM])
    main(["validate", *words, "--trainer.strategy=fsdp2", *CALM])
    message = mistake("fit", *words, "--trainer.strategy=auto")
    assert "--trainer.strategy fsdp2" in message
    message = mistake("predict", *words, "--data.prompts=wiki.txt")
    assert "--trainer.strategy auto" in message


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_shards_whole(
    wiki_folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved: list[Path] = []

    def save_once(shards: dict[str, Any], *, checkpoint_id: Path) -> None:
        if saved:
            (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
            full = OSError(errno.ENOSPC, "No space left on device")
            raise CheckpointException("", {0: (full, StackSummary())})
        save(shards, checkpoint_id=checkpoint_id)
        saved.append(checkpoint_id)

    monkeypatch.setattr(sharding, "save", save_once)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "fit",
                *fine_tuning(wiki_folder, tiny_model),
                "--trainer.max_steps=6",
                "--checkpoint.every_n_train_steps=2",
                "--trainer.strategy.class_path=ModelParallelStrategy",
                *CALM,
            ]
        )
    assert ended.value.code == 2
    assert "no space is left" in capsys.readouterr().err
    (checkpoint,) = Path("lightning_logs/version_0/checkpoints").iterdir()
    assert checkpoint.name == "last.ckpt"
    assert read_checkpoint(checkpoint)["global_step"] == 2


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # this process saves alone
def test_numbers_in_shards_run_no_code() -> None:
    folder = Path("code.ckpt")
    save({"optimizer_0": {"lr": Code()}}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(UsageError, match="sharded checkpoint"):
        load_shards({"optimizer_0": {"lr": 1.0}}, folder, alone=True)
    assert not Path("ran").exists()
    save({"optimizer_0": {"lr": 0.5}}, checkpoint_id=Path("plain.ckpt"), no_dist=True)
    load_shards(wanted := {"optimizer_0": {"lr": 1.0}}, Path("plain.ckpt"), alone=True)
    assert wanted == {"optimizer_0": {"lr": 0.5}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trainer.strategy=fsdp",), "--trainer.strategy fsdp2 shards"),
        (("--trainer.strategy=fsdp_cpu_offload",), "--trainer.strategy fsdp2 shards"),
        (
            ("--trainer.strategy.class_path=lightning.pytorch.strategies.FSDPStrategy",),
            "--trainer.strategy fsdp2 shards",
        ),
        (("--trainer.strategy=deepspeed_stage_3",), "auto, ddp"),
        (("--trainer.strategy=xla",), "auto, ddp"),
        (("--trainer.strategy=fsdp3",), "fsdp2"),
        (("--trainer.strategy=nonsense",), "auto, ddp"),
        (
            ("--trainer.strategy=ModelParallelStrategy", "--trainer.precision=16-mixed"),
            "--trainer.precision",
        ),
        (
            (
                "--trainer.strategy=fsdp2",
                "--trainer.callbacks=[{class_path: EMAWeightAveraging}]",
            ),
            "--trainer.callbacks EMAWeightAveraging: it copies the model",
        ),
        (
            (
                "--trainer.strategy.class_path=ModelParallelStrategy",
                "--trainer.strategy.init_args.tensor_parallel_size=2",
            ),
            "tensor_parallel_size 2: must be 1",
        ),
        (
            (
                "--trainer.strategy.class_path=ModelParallelStrategy",
                "--trainer.strategy.init_args.data_parallel_size=2",
            ),
            "data_parallel_size 2",
        ),
    ],
)
def test_mistakes(
    wiki_folder: Path, tiny_model: Path, mistake: Mistake, words: tuple[str, ...], said: str
) -> None:
    assert said in mistake("fit", *fine_tuning(wiki_folder, tiny_model), *CALM, *words)
