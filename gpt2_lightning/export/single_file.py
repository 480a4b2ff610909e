"""A GPT-2 as one file for other runtimes: GGUF for llama.cpp, ONNX for ONNX Runtime; read back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import positions_of

# what llama.cpp computes whatever the configuration says
FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}

ONE_FILE_BYTES = 1.9e9  # protobuf's limit is 2 GiB, and the graph needs some of it

TOLERANCE = 1e-3  # of logits between torch's kernels and ONNX Runtime's, in fp32


def write_gguf(file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model for llama.cpp and what builds on it, and compare what is read back.

    Args:
        file: The file.
        model: A GPT-2 on the CPU. Matrices are written in its type, all else in fp32, as
            llama.cpp wants it.
        tokenizer: Its tokenizer, a byte-level BPE that cuts text as GPT-2's does.

    Raises:
        UsageError: If llama.cpp would compute, or cut text, otherwise.
        RuntimeError: If what is read back differs.
    """
    import gguf

    _check_model(model, "gguf")
    config, positions = model.config, positions_of(model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    bf16 = model.dtype == torch.bfloat16
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
    writer.add_name(file.stem)
    writer.add_context_length(positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    file_type = gguf.LlamaFileType
    writer.add_file_type(file_type.MOSTLY_BF16 if bf16 else file_type.ALL_F32)
    tokens = _add_tokenizer(writer, tokenizer, config.vocab_size)
    written = {}
    for name, weights in _weights(model).items():
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise RuntimeError(f"{name}: the gguf package knows no such weights of a GPT-2")
        in_bf16 = bf16 and weights.dim() == 2 and not called.startswith("position")
        values = weights.float().contiguous().numpy()
        kind = gguf.GGMLQuantizationType.BF16 if in_bf16 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(called, gguf.quants.quantize(values, kind), raw_dtype=kind)
        written[called] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _compare_gguf(file, written, tokens)


def _check_model(model: PreTrainedModel, form: str) -> None:
    config = model.config
    if config.model_type != "gpt2":
        raise UsageError(
            f"--format {form}: it writes GPT-2, and this is {config.model_type}. Export the "
            "folder, and convert it with the runtime's own program."
        )
    for name, computed in FIXED.items():
        if (value := getattr(config, name)) not in computed:
            raise UsageError(
                f"--format {form}: llama.cpp computes a GPT-2 with {name} {computed[0]}, and this "
                f"one's is {value}."
            )


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights by their names, matrices as ``(out, in)``; a tied head is left out."""
    transposed = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)
    }
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head.weight is embedding.weight
    return {
        name: weights.t() if name in transposed else weights
        for name, weights in model.state_dict().items()
        if not (is_tied and name == "lm_head.weight")
    }


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """Write a tokenizer's settings, and return the text of each token."""
    import gguf

    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    cuts, model = parts["pre_tokenizer"] or {}, parts["model"]
    as_gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if (
        model["type"] != "BPE"
        or parts["normalizer"] is not None
        or any(cuts.get(name) != value for name, value in as_gpt2.items())
    ):
        raise UsageError(
            "--format gguf: the tokenizer cuts text otherwise than GPT-2's, as llama.cpp would "
            "not. Export the folder, and convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    kinds = gguf.TokenType
    tokens = [f"[PAD{id_}]" for id_ in range(size)]  # ids of the model that the tokenizer lacks
    types = [kinds.UNUSED] * size
    for token, id_ in model["vocab"].items():
        tokens[id_], types[id_] = token, kinds.NORMAL
    for added in parts["added_tokens"]:
        kind = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(pairs)
    for id_, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if id_ is not None:
            add(id_)
    writer.add_add_bos_token(False)
    return tokens


def _compare_gguf(file: Path, written: dict[str, np.ndarray], tokens: list[str]) -> None:
    import gguf

    reader = gguf.GGUFReader(file)
    found = {it.name: it for it in reader.tensors}
    if found.keys() != written.keys():
        raise RuntimeError(f"{file}: it holds other weights than were written")
    for name, values in written.items():
        back = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        if not np.array_equal(back.reshape(values.shape), values):
            raise RuntimeError(f"{file}: the written {name} differs from the model's")
    listed = reader.get_field(gguf.Keys.Tokenizer.LIST)
    if listed is None or listed.contents() != tokens:
        raise RuntimeError(f"{file}: it holds other tokens than were written")


class _Logits(nn.Module):
    """A model as a function of ids and a mask alone, whose names ONNX Runtime is given."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: Tensor = output.logits
        return logits


@torch.inference_mode()
def write_onnx(file: Path, model: PreTrainedModel) -> None:
    """Write a model for ONNX Runtime, and compare the logits of what is read back.

    Its inputs are ``input_ids`` and ``attention_mask``, both of shape ``(batch, tokens)``, its
    output ``logits``; keys and values are not kept from one call to the next.

    Args:
        file: The file; above 2 GB the weights lie beside it.
        model: A GPT-2 on the CPU, in fp32.

    Raises:
        RuntimeError: If the logits differ.
    """
    import onnxruntime

    module = _Logits(model).eval()
    axes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    ids = torch.arange(10).reshape(2, 5) % model.config.vocab_size
    large = sum(it.numel() * it.element_size() for it in model.parameters()) > ONE_FILE_BYTES
    torch.onnx.export(
        module,
        (ids, torch.ones_like(ids)),
        file,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        external_data=large,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch, tokens in ((1, 1), (3, min(16, positions_of(model)))):
        ids = torch.arange(batch * tokens).reshape(batch, tokens) % model.config.vocab_size
        mask = torch.ones_like(ids)
        mask[1:, 0] = 0  # padded on the left
        given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        (found,) = session.run(["logits"], given)
        read = mask.bool().numpy()  # what stands at padding means nothing
        if not np.allclose(found[read], module(ids, mask).numpy()[read], atol=TOLERANCE):
            raise RuntimeError(f"{file}: the written model's logits differ from the model's")
