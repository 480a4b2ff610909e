"""The memory estimate against what torch really keeps."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Literal

import pytest
import torch
from transformers import GPT2Config

from gpt2_lightning.model.gpt2 import Architecture, AttentionName, count_parameters
from gpt2_lightning.model.lora import Lora, adapt
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.quantized import bytes_in_4_bits, numbers_in
from gpt2_lightning.plan.hardware import Hardware
from gpt2_lightning.plan.memory import (
    MemoryEstimate,
    Setting,
    estimate_memory,
    kept_by_a_layer,
    kept_by_checkpointing,
    kept_outside,
)
from gpt2_lightning.plan.shape import precision_of, shape_of

CPU = Hardware("cpu", 1, 1, "single", None, "")
GPUS = Hardware("cuda", 4, 1, "ddp", None, "")
UPDATE = "last gradient and optimizer step"
BLOCKS, BLOCK_SIZE = 2, 24  # unlike any size of the model's
ARCHITECTURE = Architecture(layers=3, heads=4, width=64)
MODEL = {
    "pretrained": None,
    "revision": None,
    "hf_config": None,
    "architecture": asdict(ARCHITECTURE),
    "dropout": None,
    "attention_dropout": 0.0,
    "lora": asdict(Lora()),
}


def setting(hardware: Hardware = CPU, precision: str = "32-true", **model: object) -> Setting:
    shape = shape_of(MODEL | model, BLOCK_SIZE, 100)
    return Setting(shape, precision_of(precision), hardware, BLOCKS, BLOCK_SIZE)


def kept_by(module: GPT2Module, inputs: dict[str, torch.Tensor], run: Setting) -> list[int]:
    """Return the bytes of each tensor that the transformer keeps for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        of_rows = {BLOCK_SIZE, BLOCKS * BLOCK_SIZE} & set(tensor.shape)
        if storage not in weights and of_rows and tensor.is_floating_point():
            kept[storage] = tensor
        return tensor

    cast = torch.autocast("cpu", torch.bfloat16) if run.precision.mixed else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        hidden = module.model.base_model(**inputs, use_cache=False).last_hidden_state
    kept[hidden.untyped_storage().data_ptr()] = hidden
    return [tensor.untyped_storage().nbytes() for tensor in kept.values()]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("attention", "dropout", "attention_dropout"),
    [("sdpa", 0.1, 0.0), ("sdpa", 0.0, 0.0), ("sdpa", 0.1, 0.1), ("eager", 0.1, 0.1),
     ("eager", 0.1, 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_are_what_torch_keeps(
    precision: str,
    attention: AttentionName,
    dropout: float,
    attention_dropout: float,
    padded: bool,
    checkpointing: bool,
) -> None:
    if padded and (attention == "eager" or attention_dropout):
        pytest.skip("the mask is added in place there")
    run = replace(
        setting(precision=precision, dropout=dropout, attention_dropout=attention_dropout),
        attention=attention,
        padded=padded,
        checkpointing=checkpointing,
    )
    module = GPT2Module(
        architecture=ARCHITECTURE,
        dropout=dropout,
        attention_dropout=attention_dropout,
        attention=attention,
        vocab_size=100,
        block_size=BLOCK_SIZE,
        gradient_checkpointing=checkpointing,
    )
    ids = torch.randint(0, 100, (BLOCKS, BLOCK_SIZE))
    inputs = {"input_ids": ids}
    if padded:
        inputs["attention_mask"] = (torch.arange(BLOCK_SIZE) < 20).long().expand(BLOCKS, -1)
    measured = sum(kept_by(module, inputs, run))
    each = kept_by_checkpointing(run) if checkpointing else kept_by_a_layer(run)
    assert measured == pytest.approx(3 * sum(each) + sum(kept_outside(run)), rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dropout", "quantized"), [(0.0, None), (0.1, None), (0.0, "nf4")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_beside_an_adapter(
    precision: str, dropout: float, quantized: Literal["nf4"] | None, checkpointing: bool
) -> None:
    need_lora(quantized)
    lora = Lora(4, dropout=dropout, quantize=quantized)
    run = replace(setting(precision=precision, lora=asdict(lora)), checkpointing=checkpointing)
    module = GPT2Module(
        architecture=ARCHITECTURE,
        vocab_size=100,
        block_size=BLOCK_SIZE,
        gradient_checkpointing=checkpointing,
    )
    adapt(module.model, lora)
    measured = sum(kept_by(module, {"input_ids": torch.randint(0, 100, (BLOCKS, BLOCK_SIZE))}, run))
    each = kept_by_checkpointing(run) if checkpointing else kept_by_a_layer(run)
    # the first of the three layers keeps less: no gradient goes on to the embedding
    assert measured <= 3 * sum(each) + sum(kept_outside(run)) <= 1.1 * measured


def test_an_adapter_alone_has_gradients_and_state() -> None:
    need_lora()
    run = setting(precision="bf16-mixed", lora=asdict(Lora(8)))
    held = items(estimate_memory(run), UPDATE)
    own = 3 * 8 * (64 + 192 + 128 + 320 + 320)
    assert held["gradients"] == 4 * own
    assert held["optimizer state"] == 8 * own
    assert held["weights"] == 4 * (run.shape.parameters + own)
    assert held["gradient of the head"] == 0
    # a third of the work is gone: the gradients of weights
    assert 0.6 < run.shape.flops_per_token / setting().shape.flops_per_token < 1


def need_lora(quantized: str | None = None) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    if quantized:
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")


@pytest.mark.parametrize(
    ("lora", "gigabytes"), [(Lora(), 25.8), (Lora(8), 7.64), (Lora(8, quantize="nf4"), 2.5)]
)
def test_gpt2_xl_on_paper(lora: Lora, gigabytes: float) -> None:
    need_lora(lora.quantize)
    config = GPT2Config(n_embd=1600, n_layer=48, n_head=25).to_dict()
    shape = shape_of(MODEL | {"hf_config": config, "lora": asdict(lora)}, 1024, 50257)
    card = Hardware("cuda", 1, 1, "single", None, "")
    run = Setting(shape, precision_of("bf16-mixed"), card, 1, 1024, checkpointing=True)
    assert estimate_memory(run).needed / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_weights_in_4_bits() -> None:
    need_lora("nf4")
    run = setting(GPUS, "bf16-mixed", lora=asdict(Lora(4, quantize="nf4")))
    module = GPT2Module(architecture=ARCHITECTURE, vocab_size=100, block_size=BLOCK_SIZE)
    adapt(module.model, Lora(4, quantize="nf4"))
    parameters = sum(it.numel() * it.element_size() for it in module.parameters())
    scales = sum(
        bytes_in_4_bits(numbers) - numbers // 2
        for weight, numbers in numbers_in(module).items()
        if weight.dtype is torch.uint8
    )
    held = items(estimate_memory(run), UPDATE)["weights"]
    assert held == parameters + scales
    plain = setting(GPUS, "bf16-mixed", lora=asdict(Lora(4)))
    assert held < 0.3 * items(estimate_memory(plain), UPDATE)["weights"]
    # on a CPU they are whole before they are quantized
    at_start = [
        items(estimate_memory(replace(it, hardware=CPU)), "loading")["weights"]
        for it in (run, plain)
    ]
    assert at_start[0] == at_start[1]


def test_tied_weights_count_once() -> None:
    module = GPT2Module(architecture=ARCHITECTURE, vocab_size=100, block_size=BLOCK_SIZE)
    shape = setting().shape
    assert shape.tied
    assert shape.parameters == count_parameters(module.model)
    assert shape.layer_matrices == 12 * 64**2
    assert all(p.device.type == "cpu" for p in module.parameters())


def items(found: MemoryEstimate, phase: str) -> dict[str, int]:
    (one,) = (it for it in found.phases if it.name == phase)
    return {item.name: item.size for item in one.items}


def test_weights_gradients_and_state() -> None:
    run = setting()
    held = items(estimate_memory(run), UPDATE)
    n = run.shape.parameters
    assert (held["weights"], held["gradients"], held["optimizer state"]) == (4 * n, 4 * n, 8 * n)
    assert "gradients" not in items(estimate_memory(run), "forward pass and loss")  # dropped
    half = items(estimate_memory(setting(precision="bf16-true")), UPDATE)
    assert (half["weights"], half["gradients"], half["optimizer state"]) == (2 * n, 2 * n, 4 * n)


def test_strategies() -> None:
    run = setting(GPUS)
    copied = items(estimate_memory(run), UPDATE)
    assert copied["gradient buckets"] == copied["gradients"] == 4 * run.shape.parameters
    dealt = items(estimate_memory(replace(run, hardware=GPUS.with_strategy("fsdp"))), UPDATE)
    assert dealt["weights"] == pytest.approx(copied["weights"] / 4, rel=1e-3)
    assert dealt["optimizer state"] == pytest.approx(copied["optimizer state"] / 4, rel=1e-3)
    assert "gradient buckets" not in dealt


def test_micro_batches_keep_the_global_batch() -> None:
    run = replace(setting(), batch_size=8, accumulate=3)
    smaller = run.with_micro_batch(2)
    assert smaller.batch_size * smaller.accumulate == 24
    assert estimate_memory(smaller).needed < estimate_memory(run).needed


def test_freed_pieces_stay_with_a_process() -> None:
    run = setting()
    held = items(estimate_memory(run), "validation")
    activations = items(estimate_memory(run), "forward pass and loss")["activations"]
    assert held["kept by the allocator"] >= activations
    assert "kept by the allocator" not in items(estimate_memory(setting(GPUS)), "validation")
