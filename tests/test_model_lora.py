"""LoRA: an adapter alone is trained, kept and resumed, and hf/ holds the sum."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedModel

from gpt2_lightning import load
from gpt2_lightning.checkpoint import read_checkpoint
from gpt2_lightning.cli import main
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model import lora
from gpt2_lightning.model.lora import Lora, adapter_of, merge, save_adapter
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.optim import build_adamw
from tests.command_line import Mistake, curves, fine_tuning, fit, run_forked
from tests.test_fit_distributed import NO_DROPOUT, TWO

peft = pytest.importorskip("peft", reason="the extra lora is not installed")

# peft's models ask a model of transformers by the former name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(2 * 16).reshape(2, 16)


RANK_4 = Lora(4)


def adapted(folder: Path, lora: Lora = RANK_4, *, checkpointing: bool = False) -> GPT2Module:
    """Return a module whose adapter is no update of 0."""
    torch.manual_seed(0)
    module = GPT2Module(str(folder), lora=lora, dropout=0.0, gradient_checkpointing=checkpointing)
    with torch.no_grad():
        for weight in adapter_of(module.model).values():
            weight.normal_(std=0.1)
    return module


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


def gradients(module: GPT2Module) -> dict[str, torch.Tensor | None]:
    batch = {"input_ids": IDS, "targets": IDS.roll(-1, 1)}
    module.train().nats(batch).backward()
    return {name: it.grad for name, it in module.named_parameters()}


def test_only_the_adapter_is_trained(opinionated_model: Path) -> None:
    module = GPT2Module(str(opinionated_model), lora=Lora(4))
    plain = GPT2LMHeadModel.from_pretrained(opinionated_model)
    torch.testing.assert_close(logits(module.model), logits(plain))  # it begins with no update
    # two blocks, each c_attn, c_proj, c_fc and c_proj: 4 (inputs + outputs) each
    own = {name: it for name, it in module.named_parameters() if it.requires_grad}
    assert sum(it.numel() for it in own.values()) == 2 * 4 * (32 + 96 + 64 + 160 + 160)
    assert all(".lora_" in name for name in own)
    optimizer = build_adamw(
        module.named_parameters(),
        decayed=module.decayed,
        learning_rate=1.0,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        fused=True,
    )
    decayed, spared = (group["params"] for group in optimizer.param_groups)
    assert {id(it) for it in decayed} == {id(it) for it in own.values()}
    assert not spared
    found = gradients(module)
    assert {name for name, it in found.items() if it is not None} == own.keys()


def test_autocast_makes_no_gradient_of_the_frozen_head(opinionated_model: Path) -> None:
    module = adapted(opinionated_model)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(module)
    assert found["model.transformer.wte.weight"] is None
    assert all(it.isfinite().all() for it in found.values() if it is not None)


def compiled(module: GPT2Module) -> GPT2Module:
    """Return it with its graph traced for real, and run without waiting for a C++ compiler."""
    module._compiled = torch.compile(module.model.base_model.forward, backend="aot_eager")
    return module


def same_gradients(one: GPT2Module, other: GPT2Module) -> None:
    wanted, found = gradients(one), gradients(other)
    assert len([it for it in wanted.values() if it is not None]) == 16
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient)


def test_recomputed_activations_give_the_same_gradients(opinionated_model: Path) -> None:
    same_gradients(adapted(opinionated_model), adapted(opinionated_model, checkpointing=True))


@pytest.mark.slow
def test_compiled_it_has_the_same_gradients(opinionated_model: Path) -> None:
    same_gradients(adapted(opinionated_model), compiled(adapted(opinionated_model)))


def test_merged_and_through_peft_it_computes_the_same(
    opinionated_model: Path, tmp_path: Path
) -> None:
    module = adapted(opinionated_model)
    wanted = logits(module.model)
    plain = GPT2LMHeadModel.from_pretrained(opinionated_model)
    assert (wanted - logits(plain)).abs().max() > 0.1
    base = str(opinionated_model)
    save_adapter(tmp_path / "adapter", plain, Lora(4), adapter_of(module.model), base)
    through_peft = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(through_peft), wanted, rtol=0, atol=1e-5)
    merge(module.model)
    assert not adapter_of(module.model)
    torch.testing.assert_close(logits(module.model), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--model.pretrained=null",), "an adapter belongs to a trained model"),
        (("--model.optimizer=muon",), "--model.optimizer adamw works"),
        (("--trainer.strategy=fsdp2",), "--trainer.strategy ddp works"),
        (("--model.lora.rank=0", "--model.lora.alpha=16"), "Add --model.lora.rank 8"),
        (("--model.lora.rank=0", "--model.lora.quantize=nf4"), "Add --model.lora.rank 8"),
        (("--model.lora.quantize=int8",), "nf4"),
        (("--data.add_tokens=words.txt",), "--model.lora.rank 0 trains all weights"),
        (("--model.lora.rank=-1",), "must be >= 0"),
        (("--model.lora.dropout=1.5",), "must be from 0 to 0.999"),
    ],
)
def test_mistakes(
    words: tuple[str, ...], found: str, tiny_model: Path, wiki_folder: Path, mistake: Mistake
) -> None:
    message = mistake("fit", *fine_tuning(wiki_folder, tiny_model), "--model.lora.rank=4", *words)
    assert message.startswith("error: --model.lora.")
    assert found in message


@pytest.mark.parametrize(
    ("package", "words", "found"),
    [
        ("peft", (), "--model.lora: peft is not installed"),
        (
            "bitsandbytes",
            ("--model.lora.quantize=nf4",),
            "--model.lora.quantize nf4: bitsandbytes is not installed. pip install "
            '"gpt2-lightning[qlora]"',
        ),
    ],
)
def test_without_its_packages(
    package: str,
    words: tuple[str, ...],
    found: str,
    tiny_model: Path,
    wiki_folder: Path,
    mistake: Mistake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == package else name)
    message = mistake("fit", *fine_tuning(wiki_folder, tiny_model), "--model.lora.rank=4", *words)
    assert found in message


def test_a_checkpoint_of_an_unknown_format() -> None:
    with pytest.raises(UsageError, match="in this format, which is not known here"):
        lora.lora_of({"hyper_parameters": {"lora": {"rank": 4, "quantize": "fp3"}}})


def words(text: Path, model: Path) -> tuple[str, ...]:
    rate = ("--model.learning_rate=1e-2", "--trainer.max_steps=8", "--trainer.val_check_interval=4")
    return (*fine_tuning(text, model), *rate, "--model.lora.rank=4", "--model.lora.dropout=0.1")


@pytest.mark.slow
def test_a_run_keeps_the_adapter_alone_and_goes_on_exactly(
    wiki_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    mistake: Mistake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "base"
    shutil.copytree(tiny_model, model)
    flags = (*words(wiki_folder, model), "--model.averaging=ema")
    gone = model.with_name("gone")
    with monkeypatch.context() as patched:
        patched.setattr(GPT2Module, "log_last_step", lambda self: model.rename(gone))
        whole = fit(*flags)  # its end needs no base
    gone.rename(model)
    losses = curves(whole)["val/loss"]
    assert losses[-1] < losses[0] - 0.02
    checkpoint = read_checkpoint(whole / "checkpoints/last.ckpt")
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(checkpoint["state_dict"]) == 16
    # hf/ is plain, and what the base and the adapter beside it give through peft
    hf = GPT2LMHeadModel.from_pretrained(whole / "hf")
    base = GPT2LMHeadModel.from_pretrained(model)
    both = peft.PeftModel.from_pretrained(base, str(whole / "hf/adapter"))
    torch.testing.assert_close(logits(both), logits(hf), rtol=0, atol=1e-5)
    # from a checkpoint as from hf/
    best = next((whole / "checkpoints").glob("best*"))
    assert torch.equal(logits(load(str(best), device="cpu").model), logits(hf))

    # stopped and resumed, from a folder to which the base was moved
    part = fit(*flags, "--trainer.max_steps=4", "--model.schedule_steps=8")
    moved = model.rename(tmp_path / "moved")
    on = ("--trainer.max_steps=8", "--model.schedule_steps=8")
    fit_on = ("fit", f"--ckpt_path={part}", f"--model.pretrained={moved}", *on)
    main([*fit_on, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    ours = read_checkpoint(part / "checkpoints/last.ckpt")["state_dict"]
    assert all(torch.equal(ours[name], it) for name, it in checkpoint["state_dict"].items())
    report = (part / "report.html").read_text(encoding="utf-8")
    assert "by LoRA of rank 4" in report

    # beside other weights the adapter means nothing
    merge(base)
    with torch.no_grad():
        base.transformer.wpe.weight.add_(1e-3)
    base.save_pretrained(moved)
    message = mistake(*fit_on)
    assert "belongs to other weights" in message
    assert "--model.pretrained FOLDER" in message
    message = mistake("evaluate", f"--model={best}", f"--data.source={wiki_folder}")
    assert "its folder hf/ has the two merged" in message


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(wiki_folder: Path, tiny_model: Path) -> None:
    words = (
        *fine_tuning(wiki_folder, tiny_model),
        *("--trainer.max_steps=4", "--samples.enabled=false", "--model.lora.rank=4"),
        *NO_DROPOUT,
    )
    one = fit(*words, "--data.batch_size=4")
    done = run_forked("fit", *words, "--data.batch_size=2", *TWO, processes=2)
    assert done.returncode == 0, done.stderr
    two = Path("lightning_logs/version_1")
    assert curves(two)["train/loss"] == pytest.approx(curves(one)["train/loss"], rel=1e-5)
    assert curves(two)["val/loss"] == pytest.approx(curves(one)["val/loss"], rel=1e-5)
