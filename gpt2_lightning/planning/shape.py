"""A model's shape: what can be counted without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.causal_lm import (
    Architecture,
    count_parameters,
    from_config,
    from_scratch,
    positions_of,
    set_dropout,
)
from gpt2_lightning.model.flops import training_flops_per_token
from gpt2_lightning.pretrained import load_config


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
        layer_matrices: Numbers in all matrices of one transformer block.
        layer_parameters: Numbers in one transformer block.
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
    layer_matrices: int
    layer_parameters: int
    flops_per_token: float

    @property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(self.tensors)

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
    blocks = next(it for it in model.base_model.children() if isinstance(it, torch.nn.ModuleList))
    layer = {id(p): p for p in blocks[0].parameters()}.values()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    width = int(config.hidden_size)
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None)
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
        tensors=tuple({id(p): p.numel() for p in model.parameters()}.values()),
        layer_matrices=sum(p.numel() for p in layer if p.dim() > 1),
        layer_parameters=sum(p.numel() for p in layer),
        flops_per_token=training_flops_per_token(model, block_size),
    )
    assert shape.parameters == count_parameters(model)
    return shape


def _model(flags: Mapping[str, Any], block_size: int, vocab_size: int) -> PreTrainedModel:
    given = {
        "embd_pdrop": flags["dropout"],
        "resid_pdrop": flags["dropout"],
        "attn_pdrop": flags["attention_dropout"],
    }
    dropout = {name: value for name, value in given.items() if value is not None}
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
            f"--model.pretrained {name}: no config.json was found there "
            f"({' '.join(str(error).split())[:300]}). Give a folder with config.json, a Hub id "
            "such as openai-community/gpt2, or null to start from scratch."
        ) from error
    set_dropout(config, dropout)
    return from_config(config.to_dict(), attention="sdpa")
