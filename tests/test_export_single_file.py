"""export --format: one file for llama.cpp or ONNX Runtime, equal to the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2_lightning.cli import main
from gpt2_lightning.errors import UsageError
from gpt2_lightning.export import command
from gpt2_lightning.export.single_file import write_gguf
from tests.command_line import Mistake


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gguf_file_holds_the_model_and_its_tokenizer(tiny_model: Path, dtype: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    main(["export", f"--model={tiny_model}", "--to=out", "--format=gguf", f"--dtype={dtype}"])
    reader = gguf.GGUFReader("out/out.gguf")
    found = {
        it.name: torch.from_numpy(gguf.quants.dequantize(it.data, it.tensor_type).copy())
        for it in reader.tensors
    }
    weights = GPT2LMHeadModel.from_pretrained("out").float().state_dict()
    block = "transformer.h.1."
    for name, theirs in (
        ("token_embd.weight", weights["transformer.wte.weight"]),
        ("position_embd.weight", weights["transformer.wpe.weight"]),
        ("blk.1.attn_qkv.weight", weights[f"{block}attn.c_attn.weight"].T),
        ("blk.1.ffn_down.weight", weights[f"{block}mlp.c_proj.weight"].T),
        ("blk.1.ffn_norm.bias", weights[f"{block}ln_2.bias"]),
    ):
        assert torch.equal(found[name].reshape(theirs.shape), theirs), name
    assert len(found) == len(weights) - 1  # the head is the embedding

    def field(name: str) -> object:
        return reader.get_field(name).contents()

    tokenizer = AutoTokenizer.from_pretrained("out")
    assert field("gpt2.context_length") == 64
    assert field("general.architecture") == field("tokenizer.ggml.model") == "gpt2"
    assert field("tokenizer.ggml.tokens") == tokenizer.convert_ids_to_tokens(
        list(range(len(tokenizer)))
    )
    assert field("tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    record = json.loads(Path("out/export.json").read_text(encoding="utf-8"))
    assert "out.gguf" in record["sha256"]


@pytest.mark.slow
def test_an_onnx_file_gives_the_logits_at_any_batch_and_length(tiny_model: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    main(["export", f"--model={tiny_model}", "--to=out", "--format=onnx"])
    session = runtime.InferenceSession("out/model.onnx")
    model = GPT2LMHeadModel.from_pretrained("out").eval()
    for batch, length in ((1, 1), (2, 64), (5, 7)):
        ids = torch.randint(0, 300, (batch, length), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1:, : length // 3] = 0
        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        (found,) = session.run(["logits"], given)
        with torch.inference_mode():
            wanted = model(input_ids=ids, attention_mask=mask).logits.numpy()
        read = mask.bool().numpy()
        np.testing.assert_allclose(found[read], wanted[read], atol=1e-4)


def test_what_llama_cpp_would_compute_or_cut_otherwise(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    model = GPT2LMHeadModel.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    with pytest.raises(UsageError, match="cuts text otherwise than GPT-2's"):
        write_gguf(tmp_path / "a.gguf", model, tokenizer)
    model.config.activation_function = "relu"
    with pytest.raises(UsageError, match="activation_function gelu_new, and this one's is relu"):
        write_gguf(tmp_path / "a.gguf", model, tokenizer)


def test_the_packages_of_a_format(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.WRITERS, "gguf", ("absent_package",))
    message = mistake("export", "--model=a", "--to=out", "--format=gguf")
    assert "absent_package not installed" in message
    assert 'pip install "gpt2-lightning[gguf]"' in message
    message = mistake("export", "--model=a", "--to=out", "--format=onnx", "--dtype=bf16")
    assert "--dtype bf16: ONNX Runtime has few bf16 kernels" in message
