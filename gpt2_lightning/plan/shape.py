"""A model's shape, from its configuration alone, and the bytes of its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from gpt2_lightning.errors import UsageError, reason
from gpt2_lightning.model.gpt2 import (
    Architecture,
    count_parameters,
    dropouts,
    from_config,
    from_scratch,
    positions_of,
    set_dropout,
    training_flops_per_token,
)
from gpt2_lightning.model.lora import Lora, adapter_of, add_adapter
from gpt2_lightning.model.quantized import matrices, numbers_in
from gpt2_lightning.pretrained import load_config


@dataclass(frozen=True)
class Precision:
    """How wide the numbers of a run are.

    Attributes:
        name: Lightning's name for it.
        weights: Bytes of a weight, of its gradient, and of each of AdamW's two running means.
        products: Bytes of what goes into matrix products and comes out of them.
        mixed: Whether products are narrower than weights, which are cast for them.
        scaled: Whether the loss is scaled, as fp16 needs it; AdamW is then not fused.
    """

    name: str
    weights: int
    products: int
    mixed: bool = False
    scaled: bool = False


_FULL = Precision("32-true", 4, 4)

_BY_NAME = {
    **dict.fromkeys(("None", "32", "32-true"), _FULL),
    **dict.fromkeys(("64", "64-true"), Precision("64-true", 8, 8)),
    **dict.fromkeys(("bf16", "bf16-mixed"), Precision("bf16-mixed", 4, 2, mixed=True)),
    **dict.fromkeys(("16", "16-mixed"), Precision("16-mixed", 4, 2, mixed=True, scaled=True)),
    "bf16-true": Precision("bf16-true", 2, 2),
    "16-true": Precision("16-true", 2, 2),
}


def precision_of(asked: Any) -> Precision:
    """Return what `--trainer.precision` means.

    Args:
        asked: Its value; null is fp32.

    Raises:
        UsageError: If nothing is known of its memory.
    """
    found = _BY_NAME.get(str(asked))
    if found is None:
        raise UsageError(
            f"--trainer.precision {asked}: memory estimation does not support it. Choose 32-true, "
            "bf16-mixed, 16-mixed, bf16-true, 16-true or 64-true."
        )
    return found


@dataclass(frozen=True)
class Shape:
    """What memory, time and disk follow from.

    Attributes:
        model_type: transformers' name for the kind of model.
        layers: Transformer blocks.
        heads: Attention heads in each.
        width: Size of the hidden states.
        inner: Size of the hidden states inside a block's MLP.
        positions: Longest context in tokens.
        vocabulary: Rows of the embedding.
        tied: Whether the head is the embedding.
        dropout: Whether hidden states are dropped out.
        attention_dropout: Whether attention is.
        tensors: Numbers in each parameter, tied ones once.
        quantized: Of these, those that are held in 4 bits.
        layer_matrices: Numbers in all matrices of one transformer block.
        layer_parameters: Numbers in one transformer block.
        adapter: Numbers in each matrix of a LoRA adapter, which alone is trained; else none.
        rank: Its rank; 0 without one.
        adapter_dropout: Whether its inputs are dropped out.
        flops_per_token: Operations of a training step, per token.
    """

    model_type: str
    layers: int
    heads: int
    width: int
    inner: int
    positions: int
    vocabulary: int
    tied: bool
    dropout: bool
    attention_dropout: bool
    tensors: tuple[int, ...]
    quantized: tuple[int, ...]
    layer_matrices: int
    layer_parameters: int
    adapter: tuple[int, ...]
    rank: int
    adapter_dropout: bool
    flops_per_token: float

    @property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(self.tensors)

    @property
    def trained(self) -> tuple[int, ...]:
        """Numbers in each parameter that is trained."""
        return self.adapter or self.tensors

    @property
    def embedding(self) -> int:
        """Numbers in the embedding."""
        return self.vocabulary * self.width


def shape_of(flags: Mapping[str, Any], block_size: int, vocab_size: int) -> Shape:
    """Return the shape of the model that `--model.*` asks for; no weights are read or made.

    Args:
        flags: The flags of the model, by name.
        block_size: Tokens in a block: the positions of a model from scratch, unless said.
        vocab_size: Tokens of the vocabulary of a model from scratch.

    Raises:
        UsageError: If there is no such model, or its shape contradicts itself.
    """
    with torch.device("meta"):
        model = _model(flags, block_size, vocab_size)
    config = model.config
    # the first list of layers: GPT-2's is a child, OPT's lies in its decoder
    blocks = next(it for it in model.base_model.modules() if isinstance(it, torch.nn.ModuleList))
    layer = {id(p): p for p in blocks[0].parameters()}.values()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    width = int(config.hidden_size)
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None)
    tensors = tuple(numbers_in(model).values())
    layer_matrices = sum(p.numel() for p in layer if p.dim() > 1)
    layer_parameters = sum(p.numel() for p in layer)
    lora = Lora(**flags["lora"])
    held = matrices(model).values() if lora.quantize else ()
    quantized = tuple(it.weight.numel() for it in held)
    if lora.rank:
        with torch.device("meta"):
            add_adapter(model, lora)
    shape = Shape(
        model_type=str(config.model_type),
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        width=width,
        inner=int(inner or 4 * width),
        positions=positions_of(model),
        vocabulary=int(config.vocab_size),
        tied=head.weight is embedding.weight,
        dropout=bool(getattr(config, "resid_pdrop", 0.0)),
        attention_dropout=bool(
            getattr(config, "attn_pdrop", getattr(config, "attention_dropout", 0.0))
        ),
        tensors=tensors,
        quantized=quantized,
        layer_matrices=layer_matrices,
        layer_parameters=layer_parameters,
        adapter=tuple(it.numel() for it in adapter_of(model).values()),
        rank=lora.rank,
        adapter_dropout=lora.dropout > 0,
        flops_per_token=training_flops_per_token(model, block_size),
    )
    assert shape.parameters + sum(shape.adapter) == count_parameters(model)
    return shape


def _model(flags: Mapping[str, Any], block_size: int, vocab_size: int) -> PreTrainedModel:
    dropout = dropouts(flags["dropout"], flags["attention_dropout"])
    if flags["hf_config"] is not None:  # a checkpoint's own; fit takes it as it is
        return from_config(flags["hf_config"], attention="sdpa")
    if flags["pretrained"] is None:
        return from_scratch(
            Architecture(**flags["architecture"]),
            vocab_size=vocab_size,
            block_size=block_size,
            attention="sdpa",
            dropout=dropout,
        )
    name = flags["pretrained"]
    try:
        config = load_config(name, flags["revision"], said=f"--model.pretrained {name}")
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--model.pretrained {name}: no configuration could be loaded from there "
            f"({reason(error)}). Give a folder with config.json, a Hub id such as "
            "openai-community/gpt2, or null to start from scratch."
        ) from error
    set_dropout(config, dropout)
    if flags.get("added_tokens"):
        config.vocab_size = max(config.vocab_size, vocab_size)
    return from_config(config.to_dict(), attention="sdpa")
