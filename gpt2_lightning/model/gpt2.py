"""The language model: pretrained, from scratch or from a checkpoint; its FLOPs and its device."""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from gpt2_lightning.errors import UsageError, one_line, reason
from gpt2_lightning.model.lora import (
    USE,
    Lora,
    adapt,
    adapter_of,
    add_adapter,
    base_of,
    check_base,
    check_installed,
    lora_of,
    merge,
)
from gpt2_lightning.model.quantized import numbers_in
from gpt2_lightning.pretrained import check_settings, check_weights, load_config, load_weights

DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")  # GPT2Config's names

# A flag, GPT2Config's names for it, and those of other models (GPT-NeoX, GPT-Neo, Llama, OPT).
DROPOUT_FLAGS = (
    (
        "--model.dropout",
        ("embd_pdrop", "resid_pdrop"),
        ("hidden_dropout", "embed_dropout", "resid_dropout", "dropout"),
    ),
    ("--model.attention_dropout", ("attn_pdrop",), ("attention_dropout",)),
)

AttentionName = Literal["sdpa", "eager", "flash_attention_2"]


@dataclass
class Architecture:
    """The shape of a GPT-2 that starts from scratch; the default is GPT-2 124M.

    Attributes:
        layers: Transformer blocks.
        heads: Attention heads in each.
        width: Size of the hidden states, a multiple of ``heads``.
        positions: Longest context in tokens; null is the data's block size.
        dropout: Probability, on embeddings and residuals; attention has a flag of its own.
    """

    layers: int = 12
    heads: int = 12
    width: int = 768
    positions: int | None = None
    dropout: float = 0.1


WEIGHTS_PREFIX = "model."  # of the language model's keys in GPT2Module's state dict


def build(
    pretrained: str | None,
    revision: str | None,
    hf_config: Mapping[str, Any] | None,
    architecture: Architecture,
    *,
    vocab_size: int | None,
    block_size: int,
    attention: AttentionName,
    dropout: Mapping[str, float],
    reads_base: bool,
    added_tokens: int,
) -> PreTrainedModel:
    """Build the model that flags ask for.

    Args:
        pretrained: Hub id or folder of its weights; null starts from scratch.
        revision: Branch, tag or commit on the Hub.
        hf_config: A checkpoint's configuration, whose weights come later.
        architecture: Shape of a model from scratch.
        vocab_size: Tokens of a model from scratch, or of one that grows.
        block_size: Positions of one from scratch, where the architecture does not say.
        attention: Attention implementation.
        dropout: Overrides of the probabilities, by the configuration's names.
        reads_base: Whether a checkpoint lacks the pretrained weights, since it has but an adapter.
        added_tokens: How many of these tokens were added to those of a pretrained model.

    Raises:
        UsageError: If there is no such model.
    """
    if pretrained is not None and (hf_config is None or reads_base):
        model = from_pretrained(pretrained, revision, attention=attention, dropout=dropout)
        if added_tokens:
            grow(model, vocab_size or 0, added_tokens)
        return model
    if hf_config is not None:
        return from_config(hf_config, attention=attention)
    if vocab_size is None:
        raise UsageError("--data.vocab_size: a model from scratch needs it.")
    return from_scratch(
        architecture,
        vocab_size=vocab_size,
        block_size=block_size,
        attention=attention,
        dropout=dropout,
    )


def from_scratch(
    architecture: Architecture,
    *,
    vocab_size: int,
    block_size: int,
    attention: AttentionName,
    dropout: Mapping[str, float],
) -> PreTrainedModel:
    """Build a GPT-2 with random weights.

    Args:
        architecture: Its shape.
        vocab_size: Tokens of the vocabulary.
        block_size: Positions, where the architecture does not say.
        attention: Attention implementation.
        dropout: Overrides of the architecture's dropout, by the configuration's names.

    Raises:
        UsageError: If the width is not a multiple of the heads.
    """
    if architecture.width % architecture.heads:
        raise UsageError(
            f"--model.architecture.width {architecture.width}: must be a multiple of "
            f"--model.architecture.heads {architecture.heads}."
        )
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=architecture.positions or block_size,
        n_embd=architecture.width,
        n_layer=architecture.layers,
        n_head=architecture.heads,
        # the last id; the tokenizer's own is set when it is known
        bos_token_id=vocab_size - 1,
        eos_token_id=vocab_size - 1,
    )
    config.update({name: architecture.dropout for name in DROPOUTS} | dict(dropout))
    return _built(config, attention)


def from_pretrained(
    name: str,
    revision: str | None,
    *,
    attention: AttentionName,
    dropout: Mapping[str, float],
) -> PreTrainedModel:
    """Load a model's weights in fp32, ready to train.

    Args:
        name: Hub id, or folder in Hugging Face format.
        revision: Branch, tag or commit on the Hub.
        attention: Attention implementation.
        dropout: Overrides of the configuration's probabilities.

    Raises:
        UsageError: If there is no model of that name, or it is no causal language model.
    """
    said = f"--model.pretrained {name}"
    try:
        if Path(name).is_dir():
            check_weights(Path(name), said)
        config = load_config(name, revision, said=said)
        set_dropout(config, dropout)
        _check_attention(config, attention)
        model = load_weights(
            name,
            config,
            revision,
            dtype=torch.float32,  # transformers 5 takes the file's own, which may be half
            attn_implementation=attention,
        )
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{said}: the model cannot be loaded ({reason(error)}). Give a "
            "folder with config.json and model.safetensors, a run folder, a Hub id such as "
            "openai-community/gpt2, or null to start from scratch."
            + (f" `fetch --check {name}` says what it lacks." if Path(name).is_dir() else "")
        ) from error
    if attention != "flash_attention_2":  # which runs on a GPU alone
        check_logits(model.eval(), said)
    model.train()  # it comes in eval mode, which Lightning would keep: no dropout
    return model


def dropouts(dropout: float | None, attention_dropout: float | None) -> dict[str, float]:
    """Return what the flags say, by GPT2Config's names; what is null stays the model's own."""
    given = {"embd_pdrop": dropout, "resid_pdrop": dropout, "attn_pdrop": attention_dropout}
    return {name: value for name, value in given.items() if value is not None}


def set_dropout(config: PreTrainedConfig, dropout: Mapping[str, float]) -> None:
    """Put probabilities into a configuration, under the names that its type of model has.

    Args:
        config: Changed.
        dropout: Probabilities by GPT2Config's names. One of 0 is what a model without it has.

    Raises:
        UsageError: If the model has no dropout of that kind.
    """
    for flag, of_gpt2, of_others in DROPOUT_FLAGS:
        wanted = {name: dropout[name] for name in of_gpt2 if name in dropout}
        there = {name: value for name, value in wanted.items() if hasattr(config, name)}
        if not there and wanted:
            value = next(iter(wanted.values()))
            there = {name: value for name in of_others if hasattr(config, name)}
            if not there and value > 0:
                raise UsageError(
                    f"{flag} {value}: a model of type {config.model_type} has no such dropout. "
                    f"{flag} null leaves it as it is."
                )
        for name, value in there.items():
            setattr(config, name, value)


@torch.inference_mode()
def check_logits(model: PreTrainedModel, asked: str) -> None:
    """See that a model is causal and its logits are hidden states times the output embedding.

    Losses and scores take them so, a few rows at a time. A head with a bias or a soft cap, or a
    model that looks ahead, would be scored wrongly without a word.

    Args:
        model: The model, in eval mode.
        asked: The flag and the name by which it was asked for, for the message.

    Raises:
        UsageError: If it is another kind of model, or its logits are not numbers.
    """
    ids = torch.arange(8, device=model.device).unsqueeze(0) % model.config.vocab_size
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.vocab_size
    head = model.get_output_embeddings()
    logits, changed = (model(given, use_cache=False).logits.float() for given in (ids, other))
    if not bool(logits.isfinite().all()):
        raise UsageError(
            f"{asked}: its logits are not numbers (NaN or infinite). The weights are damaged, or "
            "its training has diverged."
        )
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    ours = torch.nn.functional.linear(hidden, head.weight).float() if head is not None else logits
    close = partial(torch.allclose, rtol=2e-2, atol=2e-2)  # weights may be half
    plain = head is not None and close(logits, ours)
    if not plain or not close(logits[:, :-1], changed[:, :-1]):
        raise UsageError(
            f"{asked}: a model of type {model.config.model_type} "
            + (
                "looks ahead: it is no causal language model."
                if plain
                else "has a head that is more than a matrix (a bias, a soft cap)."
            )
            + " Only GPT-2-like models are supported."
        )


def from_config(config: Mapping[str, Any], *, attention: AttentionName) -> PreTrainedModel:
    """Build the model that a checkpoint's configuration describes, with random weights.

    Raises:
        UsageError: If it is of a type that transformers does not know.
    """
    config = dict(config)
    check_settings(config, "hf_config of the checkpoint")
    model_type = config.pop("model_type")
    return _built(AutoConfig.for_model(model_type, **config), attention)


def from_checkpoint(checkpoint: dict[str, Any], said: str) -> PreTrainedModel:
    """Build the model of a checkpoint; one that holds a LoRA adapter alone is added to its base.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        said: How it was asked for, for messages.

    Raises:
        UsageError: If its weights are not those of its configuration, or its base is not there.
    """
    weights, config = weights_of(checkpoint, said), checkpoint["hf_config"]
    if (lora := lora_of(checkpoint)) is None:
        model = from_config(config, attention="sdpa")
        model.load_state_dict(weights)
        return model
    check_installed(lora)
    flags = checkpoint["hyper_parameters"]
    try:
        base = from_pretrained(
            str(flags["pretrained"]), flags.get("revision"), attention="sdpa", dropout={}
        )
    except UsageError as error:
        raise UsageError(
            f"{said}: it holds a LoRA adapter of {flags['pretrained']}, which cannot be read. {USE}"
        ) from error
    digest = adapt(base, lora)
    assert digest is not None
    check_base(checkpoint, digest, said, USE)
    return merged(base_of(base), lora, weights, config)


def merged(
    base: Mapping[str, torch.Tensor],
    lora: Lora,
    adapter: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
) -> PreTrainedModel:
    """Return the plain model that computes what a base and the adapter beside it do.

    Args:
        base: Weights, as `base_of` returns them.
        lora: How the adapter was trained.
        adapter: Its weights, as `adapter_of` returns them.
        config: Of the model.
    """
    model = from_config(config, attention="sdpa")
    model.load_state_dict(base)
    add_adapter(model, lora)
    model.load_state_dict(adapter, strict=False)
    merge(model)
    return model


def weights_of(checkpoint: dict[str, Any], said: str) -> dict[str, torch.Tensor]:
    """Return the language model's weights, once they are known to be those of its configuration.

    Those of a run with LoRA are the adapter's alone.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        said: How it was asked for, for messages.

    Raises:
        UsageError: If they are not; nothing as large as the configuration says was built.
    """
    weights = {
        key.removeprefix(WEIGHTS_PREFIX): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(WEIGHTS_PREFIX)
    }
    try:
        with torch.device("meta"):
            # eager: every type of model has it
            model = from_config(checkpoint["hf_config"], attention="eager")
            wanted: Mapping[str, torch.Tensor] = model.state_dict()
            if (lora := lora_of(checkpoint)) is not None:
                add_adapter(model, lora)
                wanted = adapter_of(model)
    except UsageError:
        raise
    except Exception as error:  # transformers and torch raise what they please
        raise UsageError(
            f"{said}: its hf_config describes no model ({one_line(error)})."
        ) from error
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in wanted.items()}
    if shapes != expected:
        names = sorted(shapes.keys() | expected.keys())
        name = next(it for it in names if shapes.get(it) != expected.get(it))
        raise UsageError(
            f"{said}: its weights are not those of its hf_config: {name} has the shape "
            f"{shapes.get(name)} and should have {expected.get(name)}."
        )
    return weights


def _built(config: PreTrainedConfig, attention: AttentionName) -> PreTrainedModel:
    _check_attention(config, attention)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False
    )
    model.train()
    return model


def _check_attention(config: PreTrainedConfig, attention: AttentionName) -> None:
    """See that transformers can provide an attention implementation for a model.

    Raises:
        UsageError: If it cannot, though it can build the model.
    """

    def build(attention: str) -> None:
        with torch.device("meta"):  # no weights
            AutoModelForCausalLM.from_config(
                deepcopy(config), attn_implementation=attention, trust_remote_code=False
            )

    if attention == "eager":
        return
    try:
        build(attention)
    except (ImportError, ValueError) as error:
        try:
            build("eager")
        except (ImportError, ValueError):
            return  # the attention is not to blame; loading the model says what is
        raise UsageError(
            f"--model.attention {attention}: transformers cannot provide it here "
            f"({' '.join(str(error).split())[:160]}). --model.attention sdpa, the default, needs "
            "no package; eager works for every model."
        ) from error


@torch.no_grad()
def grow(model: PreTrainedModel, tokens: int, added: int) -> None:
    """Give added tokens rows of embedding and head, in place.

    They are the mean of the others: tokens of which nothing is known. A model that was padded has
    rows for some of them, which no text has trained.

    Args:
        model: The model.
        tokens: Tokens of the vocabulary.
        added: How many of them, at its end, are new.
    """
    before = tokens - added
    if tokens > int(model.config.vocab_size):
        model.resize_token_embeddings(tokens, mean_resizing=False)  # its own draws around the mean
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):  # perhaps tied
        weight = cast(torch.Tensor, layer.weight)
        weight[before:tokens] = weight[:before].mean(0)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let each layer's activations be computed anew in the backward pass, not kept.

    transformers up to 5.17 at least has the method by its earlier name, which later ones warn of.
    """
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def fuse_gelu(model: PreTrainedModel) -> None:
    """Put torch's one-kernel tanh GELU in the place of the one written out in eight operations.

    It is the same function, and keeps one tensor for the backward pass where the other keeps
    four: GPT-2's largest activations. The configuration stays as it is.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def block_matrices(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the parameters of two dimensions that lie in the blocks."""
    blocks = [it for it in model.modules() if isinstance(it, GradientCheckpointingLayer)]
    return [weight for block in blocks for weight in block.parameters() if weight.dim() == 2]


def shard(module: nn.Module, mesh: DeviceMesh, *, bf16_mixed: bool) -> None:
    """Shard parameters, gradients and optimizer state over the processes, in place (FSDP2).

    Each block is gathered where it computes. All else is gathered with the module itself: the
    embedding and the head that is tied to it have to stay together.

    Args:
        module: What holds the language model; its forward methods gather.
        mesh: The processes, in one dimension.
        bf16_mixed: Whether autocast computes in bf16. The attention and the MLP of a block are
            gathered in bf16 then, as it would cast them, and no copies are held until the
            backward pass. Norms, residuals and the sums of gradients stay in fp32, as with ddp.

    Reference: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
    """
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in module.modules():
        if not isinstance(block, GradientCheckpointingLayer):  # transformers' blocks, of any model
            continue
        for part in block.children() if bf16_mixed else ():
            if any(it.dim() >= 2 for it in part.parameters()):  # not a norm
                fully_shard(part, mesh=mesh, mp_policy=half)
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def positions_of(model: PreTrainedModel) -> int:
    """Return the longest context of a model, in tokens."""
    found = getattr(model.config, "max_position_embeddings", None)
    if found is None:
        raise UsageError(
            f"--model: a model of type {model.config.model_type} names no longest context. Only "
            "GPT-2-like models are supported."
        )
    return int(found)


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters; tied ones, such as GPT-2's head, count once."""
    return sum(numbers_in(model).values())


def training_flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """Return the floating-point operations of forward and backward pass, per token.

    6 N for the weights that multiply (positions only add) and 12 L D T for attention, with L
    layers of width D and blocks of T tokens. A forward pass alone takes a third of it. Weights that
    are not trained, beside a LoRA adapter, have no gradients: they take 4.

    Reference: Chowdhery et al., "PaLM", https://arxiv.org/abs/2204.02311, appendix B.
    """
    config = model.config
    positions = int(config.max_position_embeddings) * int(config.hidden_size)
    weights = count_parameters(model) - positions
    frozen = [count for it, count in numbers_in(model).items() if not it.requires_grad]
    idle = max(sum(frozen) - positions, 0)
    width = int(config.num_hidden_layers) * int(config.hidden_size)
    return 6.0 * weights - 2.0 * idle + 12.0 * width * block_size


DtypeName = Literal["fp32", "bf16"]

DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def place(model: PreTrainedModel, device: str, dtype: DtypeName | None = None) -> None:
    """Bring a model onto a device, in place.

    Args:
        model: The model.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` takes the accelerator that is
            there, of which each process of torchrun takes its own.
        dtype: Type of its weights; null leaves them as they are.

    Raises:
        UsageError: If the device cannot be used.
    """
    try:
        if torch.device(_best() if device == "auto" else device).type == "meta":
            raise RuntimeError("it holds no numbers")
        cast(torch.nn.Module, model).to(
            torch.device(_best() if device == "auto" else device),
            dtype=None if dtype is None else DTYPES[dtype],
        )
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {device}: it cannot be used here ({str(error).splitlines()[0]}). "
            "--device cpu always works."
        ) from error


def _best() -> str:
    # a build of torch for GPUs names one whether it is there or not
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return "cpu"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    return found.type if found.type == "mps" else f"{found.type}:{local_rank}"


def check_attend(model: Any, attend: str) -> None:
    """Refuse to keep attention within documents where nothing would build that mask.

    Args:
        model: A transformers model.
        attend: ``--data.attend``.

    Raises:
        UsageError: If the mask would be left out in silence.
    """
    if attend != "document":
        return
    implementation = model.config._attn_implementation  # no public name has it
    if "flash" in str(implementation):
        raise UsageError(
            f"--data.attend document: --model.attention {implementation} would mask nothing in "
            "batches of several blocks. --model.attention sdpa works."
        )
    if model.config.model_type != "gpt2":
        raise UsageError(
            f"--data.attend document: it was made for GPT-2, and a model of type "
            f"{model.config.model_type} may mask nothing. Leave it out."
        )
