"""What holds on a CPU holds on a GPU: losses, a resumed run, samples, answers, scores.

Where no GPU is, ``GPU_TESTS_ON=cpu`` runs the same lines on the CPU, but for what only a GPU has.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2_lightning import load
from gpt2_lightning.checkpoint import read_checkpoint
from gpt2_lightning.cli import main
from tests.command_line import SMALL, curves
from tests.server import running, service_of

DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"
    ),
    pytest.mark.filterwarnings("ignore"),  # compilers and drivers warn of what is not ours
]

STEPS = 12
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.devices=1")
NO_DROPOUT = ("--model.dropout=0.0", "--model.attention_dropout=0.0")
MUON = "--model.optimizer=muon"
QLORA = ("--model.lora.rank=4", "--model.lora.quantize=nf4")
NOT_ON_A_CPU = (("--trainer.precision=16-mixed",), ("--model.compile=true",))


@pytest.fixture(autouse=True)
def _deterministic_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let cuBLAS be deterministic from its first call on; take back what a run asked of torch."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


def train(text: Path, model: Path, device: str, *words: str) -> Path:
    before = set(Path("lightning_logs").glob("*"))
    flags = (f"--model.pretrained={model}", f"--data.source={text}", *SMALL, *QUIET)
    main(["fit", *flags, f"--trainer.accelerator={device}", f"--trainer.max_steps={STEPS}", *words])
    (run,) = set(Path("lightning_logs").glob("*")) - before
    return run


def follows_the_cpu(text: Path, model: Path, words: tuple[str, ...], tolerance: float) -> None:
    same = [word for word in words if word in (MUON, *QLORA)]
    one = train(text, model, "cpu", "--trainer.precision=32-true", *NO_DROPOUT, *same)
    precise = "--trainer.precision=32-true"  # unless the words say another
    other = train(text, model, DEVICE, precise, *NO_DROPOUT, *words)
    for name, places in (("train/loss", STEPS), ("val/loss", 2)):
        assert len(curves(one)[name]) == places
        assert curves(other)[name] == pytest.approx(curves(one)[name], rel=tolerance)


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ((), 1e-4),
        (("--model.gradient_checkpointing=true",), 1e-4),
        (("--model.compile=true",), 1e-3),
        (("--trainer.precision=bf16-mixed",), 2e-2),
        (("--trainer.precision=16-mixed",), 1e-2),
        ((MUON,), 5e-2),  # its products are in bf16 on a GPU
        (QLORA, 1e-3),
    ],
)
def test_losses_are_those_of_the_cpu(
    words: tuple[str, ...], tolerance: float, wiki_folder: Path, tiny_model: Path
) -> None:
    if DEVICE == "cpu" and words in NOT_ON_A_CPU:
        pytest.skip("there is no fp16 on a CPU, and to compile takes minutes")
    if words == QLORA:
        pytest.importorskip("peft", reason="the extra lora is not installed")
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    follows_the_cpu(wiki_folder, tiny_model, words, tolerance)


def test_flash_attention_has_the_losses_of_the_cpu(wiki_folder: Path, tiny_model: Path) -> None:
    words = ("--trainer.precision=bf16-mixed", "--samples.enabled=false")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # any other is an error
        follows_the_cpu(wiki_folder, tiny_model, words, 2e-2)


def test_a_resumed_run_ends_with_the_same_weights(wiki_folder: Path, tiny_model: Path) -> None:
    flags = ("--trainer.deterministic=true", f"--model.schedule_steps={STEPS}")
    whole = train(wiki_folder, tiny_model, DEVICE, *flags)
    part = train(wiki_folder, tiny_model, DEVICE, *flags, f"--trainer.max_steps={STEPS // 2}")
    last = part / "checkpoints" / "last.ckpt"
    main(["fit", f"--ckpt_path={last}", f"--trainer.max_steps={STEPS}", *QUIET])
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, part)]
    assert states[0]["global_step"] == states[1]["global_step"] == STEPS
    for name, weight in states[0]["state_dict"].items():
        assert torch.equal(weight, states[1]["state_dict"][name]), name


def test_samples_of_a_seed_are_those_of_the_cpu(opinionated_model: Path) -> None:
    texts: list[list[str]] = []
    for device in ("cpu", DEVICE):
        words = ["--prompt=The river", "--prompt=A", "--seed=3", "--num_return_sequences=3"]
        output = Path(f"on_{device}_{len(texts)}.jsonl")
        words += [f"--model={opinionated_model}", "--max_new_tokens=12", f"--output={output}"]
        main(["generate", *words, f"--device={device}"])
        texts.append([json.loads(line)["text"] for line in output.read_text().splitlines()])
    assert len(texts[0]) == 6
    assert texts[0] == texts[1]


def test_the_server_answers_as_on_the_cpu(opinionated_model: Path) -> None:
    greedy = {"prompt": "The river", "temperature": 0, "max_tokens": 12}
    with running(service_of(opinionated_model, device=DEVICE)) as it:
        answer = it.text(model=opinionated_model.name, **greedy)
    model = load(str(opinionated_model), device="cpu")
    assert answer == model.generate("The river", do_sample=False, max_new_tokens=12)


def test_scores_are_those_of_the_cpu(wiki_folder: Path, tiny_model: Path) -> None:
    found = []
    for device in ("cpu", DEVICE):
        words = (f"--model={tiny_model}", f"--data.source={wiki_folder}", "--split=test")
        main(["evaluate", *words, f"--device={device}", f"--output={device}.json"])
        found.append(json.loads(Path(f"{device}.json").read_text())["nats"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


# the last one, since it leaves a process group behind
def test_a_sharded_run_has_the_losses_of_the_cpu(wiki_folder: Path, tiny_model: Path) -> None:
    follows_the_cpu(wiki_folder, tiny_model, ("--trainer.strategy=fsdp2",), 1e-4)
