from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import (
    Architecture,
    count_parameters,
    from_config,
    from_pretrained,
    from_scratch,
    fuse_gelu,
    place,
    positions_of,
    set_dropout,
)

SMALL = Architecture(layers=2, heads=2, width=8, dropout=0.3)


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_from_scratch() -> None:
    model = from_scratch(SMALL, vocab_size=50, block_size=16, attention="sdpa", dropout={})
    assert model.training
    assert is_tied(model)
    assert positions_of(model) == 16
    assert model.config.attn_pdrop == 0.3
    # embeddings, positions, 12 D^2 + 13 D a layer, last layer norm
    assert count_parameters(model) == 50 * 8 + 16 * 8 + 2 * (12 * 64 + 13 * 8) + 16


def test_gpt2_counts_124_million() -> None:
    with torch.device("meta"):
        model = from_scratch(
            Architecture(), vocab_size=50257, block_size=1024, attention="sdpa", dropout={}
        )
    assert count_parameters(model) == 124_439_808


def test_width_and_heads() -> None:
    with pytest.raises(UsageError, match=r"width 10: must be a multiple of.*heads 4"):
        from_scratch(
            Architecture(width=10, heads=4),
            vocab_size=50,
            block_size=16,
            attention="sdpa",
            dropout={},
        )


def test_pretrained_is_in_train_mode_in_fp32_and_tied(tiny_model: Path) -> None:
    model = from_pretrained(
        str(tiny_model), revision=None, attention="sdpa", dropout={"attn_pdrop": 0.0}
    )
    assert model.training
    assert all(module.training for module in model.modules())
    assert model.dtype == torch.float32
    assert is_tied(model)
    assert model.config.attn_pdrop == 0.0
    assert model.config.resid_pdrop == 0.1
    blocks = cast(Any, model).transformer.h
    assert blocks[0].attn.config.attn_pdrop == 0.0


def test_config_rebuilds_the_model(tiny_model: Path) -> None:
    model = from_pretrained(str(tiny_model), revision=None, attention="sdpa", dropout={})
    again = from_config(model.config.to_dict(), attention="sdpa")
    again.load_state_dict(model.state_dict())
    ids = torch.arange(10).unsqueeze(0)
    assert is_tied(again)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--model\.pretrained .*: config\.json is missing"):
        from_pretrained(str(tmp_path), revision=None, attention="sdpa", dropout={})


def test_a_pickle_is_not_read(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        from_pretrained(str(tmp_path), revision=None, attention="sdpa", dropout={})


def test_the_fused_gelu_is_the_same_function(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids, keys = torch.arange(64).unsqueeze(0), list(model.state_dict())
    with torch.inference_mode():
        before = model(ids).logits
        fuse_gelu(model)
        after = model(ids).logits
    assert sum(isinstance(module, torch.nn.GELU) for module in model.modules()) == 2
    assert torch.allclose(after, before, atol=1e-6, rtol=1e-5)
    assert list(model.state_dict()) == keys
    assert model.config.activation_function == "gelu_new"


@pytest.mark.parametrize(
    ("kind", "dropout", "expected"),
    [
        ("llama", {"attn_pdrop": 0.0}, {"attention_dropout": 0.0}),
        ("llama", {"attn_pdrop": 0.2}, {"attention_dropout": 0.2}),
        ("llama", {"embd_pdrop": 0.0, "resid_pdrop": 0.0}, {}),
        ("gpt_neox", {"resid_pdrop": 0.1, "attn_pdrop": 0.2}, {"hidden_dropout": 0.1}),
        ("gpt2", {"embd_pdrop": 0.3, "resid_pdrop": 0.3}, {"embd_pdrop": 0.3, "attn_pdrop": 0.1}),
    ],
)
def test_dropout_by_the_names_of_the_model(
    kind: str, dropout: dict[str, float], expected: dict[str, float]
) -> None:
    config = AutoConfig.for_model(kind)
    set_dropout(config, dropout)
    assert {name: getattr(config, name) for name in expected} == expected


def test_dropout_that_a_model_does_not_have_is_named() -> None:
    config = AutoConfig.for_model("llama")
    with pytest.raises(UsageError, match=r"--model.dropout 0.1: a model of type llama has no such"):
        set_dropout(config, {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.0})


def test_auto_is_the_cpu_where_a_build_for_gpus_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def accelerator(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", accelerator)
    model = from_scratch(SMALL, vocab_size=50, block_size=16, attention="sdpa", dropout={})
    place(model, "auto")
    assert model.device.type == "cpu"
