"""LoRA through peft: pairs of narrow matrices beside those of the blocks, which alone are trained.

A checkpoint holds the pairs and the SHA-256 of the base model's weights, as they were before any
were quantized; ``hf/`` the sum of both.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.quantized import QuantizedLinear, matrices, quantize

if TYPE_CHECKING:  # peft is an extra
    from peft import LoraConfig

ADAPTER = "adapter"  # folder in hf/, in peft's format

OWN = ".lora_"  # in the names of an adapter's weights
BESIDE = ".base_layer"  # in the names of the weights that it stands beside

# what helps where a base is missing: to train on, and to use what was trained
TRAIN_ON = "Put those back, or name the folder that has them: --model.pretrained FOLDER."
USE = "Put it back as it was; or, where the run has ended, its folder hf/ has the two merged."


@dataclass
class Lora:
    """An adapter of low rank; the pretrained weights stay as they are.

    Attributes:
        rank: Rank of the update of each matrix of the blocks; 0 trains all weights instead.
        alpha: The update is scaled by alpha / rank; null is twice the rank.
        dropout: Dropout probability on the adapter's inputs.
        quantize: ``nf4`` holds the matrices of the pretrained model in 4 bits while the adapter is
            trained (QLoRA), and needs bitsandbytes; null as they are.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
    https://arxiv.org/abs/2106.09685.
    """

    rank: int = 0
    alpha: float | None = None
    dropout: float = 0.0
    quantize: Literal["nf4"] | None = None


def check_lora(lora: Lora, pretrained: str | None) -> None:
    """See that there is something to adapt, and the packages to do it.

    Raises:
        UsageError: If a rank is given, and one of them is missing.
    """
    if not lora.rank:
        return
    if pretrained is None:
        raise UsageError(
            f"--model.lora.rank {lora.rank}: an adapter belongs to a trained model. Give one with "
            "--model.pretrained, or leave the rank out to train all weights from scratch."
        )
    check_installed(lora)


def check_installed(lora: Lora) -> None:
    """See that peft is there, and bitsandbytes where it is needed.

    Raises:
        UsageError: If one is not.
    """
    needed = [("peft", "--model.lora", "lora")]
    if lora.quantize:
        needed.append(("bitsandbytes", f"--model.lora.quantize {lora.quantize}", "qlora"))
    for package, flag, extra in needed:
        if find_spec(package) is None:
            raise UsageError(
                f"{flag}: {package} is not installed. pip install "
                f'"gpt2-lightning[{extra}]" installs it.'
            )


def adapt(model: PreTrainedModel, lora: Lora) -> str | None:
    """Add the adapter that flags ask for to a plain model on the CPU, in place.

    Returns:
        The SHA-256 of the model's own weights; None without an adapter.
    """
    if not lora.rank:
        return None
    digest = digest_of(model)
    if lora.quantize:
        quantize(model)
    add_adapter(model, lora)
    return digest


def add_adapter(model: PreTrainedModel, lora: Lora) -> None:
    """Put an adapter beside each matrix of the blocks, in place; nothing else requires a gradient.

    It begins as an update of 0: the model computes what it did before.

    Args:
        model: A plain model.
        lora: The adapter; its rank is at least 1.

    Raises:
        UsageError: If peft is missing.
    """
    check_installed(lora)
    from peft import inject_adapter_in_model

    inject_adapter_in_model(_peft_config(model, lora), model)


def _peft_config(model: PreTrainedModel, lora: Lora, **more: Any) -> "LoraConfig":
    from peft import LoraConfig

    layers = matrices(model)
    alpha: Any = 2 * lora.rank if lora.alpha is None else lora.alpha  # declared as int; any will do
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in layers}),
        fan_in_fan_out=any(isinstance(it, Conv1D) for it in layers.values()),  # GPT-2's layout
        **more,
    )


def adapter_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return an adapter's weights by their names in the model."""
    return {name: it for name, it in model.named_parameters() if OWN in name}


def base_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights beside an adapter by a plain model's names; what was quantized in fp32."""
    found = {name: it for name, it in model.state_dict().items() if OWN not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            found[f"{name}.weight"] = layer.dequantized()
    return {name.replace(BESIDE, ""): it for name, it in found.items()}


def keep_adapter(checkpoint: dict[str, Any], digest: str) -> None:
    """Leave the base model out of a checkpoint, in place; its digest stays."""
    weights = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: it for name, it in weights.items() if OWN in name}
    checkpoint["base"] = digest


def merge(model: PreTrainedModel) -> None:
    """Add the adapter to the matrices beside it, in place: the model is a plain one again."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())


def save_adapter(
    folder: Path, model: PreTrainedModel, lora: Lora, weights: Mapping[str, Tensor], base: str
) -> None:
    """Write an adapter in peft's own format, for ``PeftModel.from_pretrained(base, folder)``.

    Args:
        folder: Where; it is made.
        model: The plain model, for the names of its layers.
        lora: The adapter.
        weights: As `adapter_of` returns them.
        base: Name or folder of the base model.

    Reference: https://huggingface.co/docs/peft/developer_guides/checkpoint
    """
    folder.mkdir()
    config = _peft_config(model, lora, base_model_name_or_path=base, inference_mode=True)
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": it.detach().cpu().contiguous()
        for name, it in weights.items()
    }
    file = folder / "adapter_model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod((folder / "adapter_config.json").stat().st_mode)  # safetensors' is the user's alone


def lora_of(checkpoint: Mapping[str, Any]) -> Lora | None:
    """Return how a checkpoint's adapter was trained; None where it holds a whole model.

    Raises:
        UsageError: If that was beside a base in a format that is not known here.
    """
    found = (checkpoint.get("hyper_parameters") or {}).get("lora") or {}
    if not found.get("rank"):
        return None
    quantize = found.get("quantize")
    if quantize not in (None, "nf4"):
        raise UsageError(
            f"--model.lora.quantize {quantize}: a checkpoint's adapter was trained beside matrices "
            "in this format, which is not known here. The folder hf/ of its run can be used."
        )
    return Lora(found["rank"], found.get("alpha"), found.get("dropout") or 0.0, quantize)


def digest_of(model: PreTrainedModel) -> str:
    """Return the SHA-256 of a plain model's weights, by their names."""
    found = hashlib.sha256()
    for name, weight in model.named_parameters():
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_base(checkpoint: Mapping[str, Any], digest: str, said: str, instead: str) -> None:
    """See that a base model is the one that a checkpoint's adapter was trained beside.

    Args:
        checkpoint: The checkpoint.
        digest: Of the base model at hand.
        said: How it was asked for, for messages.
        instead: What would work.

    Raises:
        UsageError: If it is not.
    """
    if (noted := checkpoint.get("base")) != digest:
        name = checkpoint["hyper_parameters"].get("pretrained")
        raise UsageError(
            f"{said}: its LoRA adapter belongs to other weights than {name} has now (SHA-256 "
            f"{str(noted)[:12]}, found {digest[:12]}). {instead}"
        )
