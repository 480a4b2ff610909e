"""LoRA beside a base in 4 bits: what is computed, kept, resumed and written."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2LMHeadModel

from gpt2_lightning import load
from gpt2_lightning.checkpoint import read_checkpoint
from gpt2_lightning.cli import main
from gpt2_lightning.model import lora
from gpt2_lightning.model.gpt2 import count_parameters, merged
from gpt2_lightning.model.lora import Lora, adapter_of, base_of
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.quantized import QuantizedLinear, bytes_in_4_bits
from tests.command_line import CALM, Mistake, curves, fine_tuning, fit
from tests.test_model_lora import adapted, compiled, gradients, logits, same_gradients

pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
pytest.importorskip("peft", reason="the extra lora is not installed")

NF4 = Lora(4, quantize="nf4")


def test_it_computes_what_bitsandbytes_own_layers_do(opinionated_model: Path) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        opinionated_model, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    ours = GPT2Module(str(opinionated_model), lora=NF4).model
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=1e-5)
    plain = GPT2LMHeadModel.from_pretrained(opinionated_model)
    assert (logits(ours) - logits(plain)).abs().max() > 1e-3  # the base is another
    assert count_parameters(ours) == count_parameters(plain) + sum(
        it.numel() for it in adapter_of(ours).values()
    )


def test_the_plain_model_of_both_computes_the_same(opinionated_model: Path) -> None:
    module = adapted(opinionated_model, NF4)
    base, adapter = base_of(module.model), adapter_of(module.model)
    plain = merged(base, NF4, adapter, module.model.config.to_dict())
    assert not [it for it in plain.modules() if isinstance(it, QuantizedLinear)]
    torch.testing.assert_close(logits(plain), logits(module.model), rtol=0, atol=1e-5)
    unquantized = adapted(opinionated_model)
    assert module.base_digest == unquantized.base_digest
    assert (logits(unquantized.model) - logits(plain)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_in_other_types(dtype: torch.dtype, opinionated_model: Path) -> None:
    module = adapted(opinionated_model, NF4)
    wanted = logits(module.model)
    found = logits(module.to(dtype).model)
    assert found.dtype is dtype
    close = 1e-4 if dtype is torch.float64 else 0.1
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=close)


def test_gradients_in_mixed_precision_before_and_after_a_validation(
    opinionated_model: Path,
) -> None:
    wanted = gradients(adapted(opinionated_model, NF4))
    module = adapted(opinionated_model, NF4)
    biases = {name: it.clone() for name, it in module.named_parameters() if name[-4:] == "bias"}
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(module)
        for name, gradient in wanted.items():
            it = found[name]
            assert (it is None) is (gradient is None)
            if it is not None and gradient is not None:
                assert (it - gradient).norm() < 0.1 * gradient.norm()
        module.zero_grad()
        logits(module.model)
    for name, bias in module.named_parameters():
        assert name not in biases or torch.equal(bias, biases[name])  # not rounded to bf16


@pytest.mark.slow
# torch's compiler makes an instance of bitsandbytes' function
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_and_recomputed_it_has_the_same_gradients(opinionated_model: Path) -> None:
    one, other = (adapted(opinionated_model, NF4, checkpointing=on) for on in (False, True))
    same_gradients(one, compiled(other))


def test_bytes_in_4_bits(opinionated_model: Path) -> None:
    model = GPT2Module(str(opinionated_model), lora=NF4).model
    layers = [it for it in model.modules() if isinstance(it, QuantizedLinear)]
    assert len(layers) == 8
    for layer in layers:
        scales, more = layer.scales, layer.scales.state2
        own = (layer.weight, scales.absmax, scales.code, scales.offset, more.absmax, more.code)
        held = sum(it.numel() * it.element_size() for it in own)
        assert held == bytes_in_4_bits(layer.in_features * layer.out_features)


@pytest.mark.slow
def test_a_run_goes_on_exactly_and_leaves_a_plain_model(
    wiki_folder: Path,
    opinionated_model: Path,
    mistake: Mistake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = (
        *fine_tuning(wiki_folder, opinionated_model),
        *("--model.lora.rank=4", "--model.lora.quantize=nf4", "--model.lora.dropout=0.1"),
        *("--model.learning_rate=1e-2", "--model.schedule_steps=4", "--samples.enabled=false"),
        "--trainer.val_check_interval=2",
    )
    whole = fit(*flags, "--trainer.max_steps=4")
    part = fit(*flags, "--trainer.max_steps=2")
    on = ("fit", f"--ckpt_path={part}", "--trainer.max_steps=4", *CALM)
    main([*on])
    one, two = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (whole, part))
    assert all(".lora_" in name for name in one["state_dict"])
    assert all(torch.equal(one["state_dict"][name], it) for name, it in two["state_dict"].items())
    assert curves(whole)["val/loss"] == curves(part)["val/loss"]
    hf = GPT2LMHeadModel.from_pretrained(whole / "hf")
    best = next((whole / "checkpoints").glob("best*"))
    assert torch.equal(logits(load(str(best), device="cpu").model), logits(hf))
    assert "--model.lora" in mistake(*on, "--model.lora.quantize=null")
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    main(["evaluate", f"--model={whole}", f"--data.source={wiki_folder}"])  # of hf/
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    message = mistake("generate", f"--model={best}", "--prompt=A")
    assert "bitsandbytes is not installed" in message
