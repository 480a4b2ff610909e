"""What holds on a CPU holds on a GPU: losses, a resumed run, samples, scores."""

import json
from pathlib import Path

import pytest
import torch

from gpt2_lightning import load
from gpt2_lightning.checkpoint import read_checkpoint
from gpt2_lightning.cli import main
from tests.command_line import SMALL, curves

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore"),  # compilers and drivers warn of what is not ours
]

STEPS = 12
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.devices=1")
NO_DROPOUT = ("--model.dropout=0.0", "--model.attention_dropout=0.0")


def train(text: Path, model: Path, device: str, *words: str) -> Path:
    before = set(Path("lightning_logs").glob("*"))
    flags = (f"--model.pretrained={model}", f"--data.source={text}", *SMALL, *QUIET)
    main(["fit", *flags, f"--trainer.accelerator={device}", f"--trainer.max_steps={STEPS}", *words])
    (run,) = set(Path("lightning_logs").glob("*")) - before
    return run


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ((), 1e-4),
        (("--model.gradient_checkpointing=true",), 1e-4),
        (("--model.compile=true",), 1e-3),
        (("--trainer.precision=bf16-mixed",), 2e-2),
        (("--trainer.precision=16-mixed",), 1e-2),
        (("--trainer.strategy=fsdp2",), 1e-4),
        (("--model.optimizer=muon",), 5e-2),  # its products are in bf16 on a GPU
    ],
)
def test_losses_are_those_of_the_cpu(
    words: tuple[str, ...], tolerance: float, wiki_folder: Path, tiny_model: Path
) -> None:
    same = ("--model.optimizer=muon",) if "--model.optimizer=muon" in words else ()
    one = train(wiki_folder, tiny_model, "cpu", *NO_DROPOUT, *same)
    other = train(wiki_folder, tiny_model, "gpu", *NO_DROPOUT, *words)
    for name in ("train/loss", "val/loss"):
        assert curves(other)[name] == pytest.approx(curves(one)[name], rel=tolerance)


def test_a_resumed_run_ends_with_the_same_weights(wiki_folder: Path, tiny_model: Path) -> None:
    flags = ("--trainer.deterministic=true", f"--model.schedule_steps={STEPS}")
    whole = train(wiki_folder, tiny_model, "gpu", *flags)
    part = train(wiki_folder, tiny_model, "gpu", *flags, f"--trainer.max_steps={STEPS // 2}")
    last = part / "checkpoints" / "last.ckpt"
    main(["fit", f"--ckpt_path={last}", f"--trainer.max_steps={STEPS}", *QUIET])
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, part)]
    for name, weight in states[0]["state_dict"].items():
        assert torch.equal(weight, states[1]["state_dict"][name]), name


def test_samples_of_a_seed_are_those_of_the_cpu(tiny_model: Path) -> None:
    texts = [
        load(str(tiny_model), device=device).generate("The river", seed=3, max_new_tokens=12)
        for device in ("cpu", "cuda")
    ]
    assert texts[0] == texts[1]


def test_scores_are_those_of_the_cpu(wiki_folder: Path, tiny_model: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        words = (f"--model={tiny_model}", f"--data.source={wiki_folder}", "--split=test")
        main(["evaluate", *words, f"--device={device}", f"--output={device}.json"])
        found.append(json.loads(Path(f"{device}.json").read_text())["nats"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
