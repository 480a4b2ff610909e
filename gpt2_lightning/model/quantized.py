"""Frozen matrices in 4 bits through bitsandbytes: NF4, whose scales are quantized in their turn.

Reference: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs",
https://arxiv.org/abs/2305.14314.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

BLOCK, SUPERBLOCK = 64, 256  # weights that share a scale; scales that share one (bitsandbytes' own)
TABLES = 4 * (16 + 256 + 1)  # bytes: values of a weight and of a scale, and the scales' mean


class QuantizedLinear(nn.Linear):
    """A frozen matrix in 4 bits beside its bias; it is dequantized for each product.

    bitsandbytes' ``Linear4bit`` would round the bias, in place, to the type in which it computes;
    choose that by its first input, whatever autocast says; and, after a validation on a CPU with
    bf16 instructions, give no gradient. So only its functions are used.

    Args:
        layer: The layer that it replaces, on the CPU, so that all machines round alike.
    """

    def __init__(self, layer: Conv1D | nn.Linear) -> None:
        from bitsandbytes.functional import quantize_4bit

        weight = layer.weight.detach()
        matrix = weight.T.contiguous() if isinstance(layer, Conv1D) else weight
        outputs, inputs = matrix.shape
        super().__init__(inputs, outputs, bias=False, device="meta")
        packed, state = quantize_4bit(matrix, quant_type="nf4", compress_statistics=True)
        self.weight = nn.Parameter(packed, requires_grad=False)  # (inputs * outputs / 2, 1)
        self.bias = layer.bias
        self.scales: Any = state  # tensors that no cast of the model's reaches
        self.is_transposed = isinstance(layer, Conv1D)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product, in autocast's type where it is on."""
        from bitsandbytes import matmul_4bit

        self._bring_scales()
        device, dtype = input.device.type, input.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        narrow = torch.float32 if dtype is torch.float64 else dtype  # its widest
        bias = None if self.bias is None else self.bias.to(narrow)
        packed = self.weight.t()  # versions before 0.50 need it so, and later ones take both
        found: Tensor = matmul_4bit(input.to(narrow), packed, self.scales, bias=bias)
        return found.to(dtype)

    def dequantized(self) -> Tensor:
        """Return the matrix in fp32 on the CPU, as the layer that was replaced has it."""
        from bitsandbytes.functional import dequantize_4bit

        self._bring_scales()
        found: Tensor = dequantize_4bit(self.weight.detach(), self.scales).cpu()
        return found.T if self.is_transposed else found

    def _bring_scales(self) -> None:
        if self.scales.absmax.device != self.weight.device:
            self.scales.to(self.weight.device)


def matrices(model: PreTrainedModel) -> dict[str, Conv1D | nn.Linear]:
    """Return the layers of a model that are matrices, by their names; not the head."""
    head = model.get_output_embeddings()
    return {
        name: it
        for name, it in model.named_modules()
        if isinstance(it, Conv1D | nn.Linear) and it is not head
    }


def quantize(model: PreTrainedModel) -> None:
    """Quantize a model's matrices, in place."""
    for name, layer in matrices(model).items():
        model.set_submodule(name, QuantizedLinear(layer))


def bytes_in_4_bits(numbers: int) -> int:
    """Return the bytes that a matrix of so many numbers takes: half a byte each, and scales."""
    scales = -(-numbers // BLOCK)
    return -(-numbers // 2) + scales + 4 * -(-scales // SUPERBLOCK) + TABLES


def numbers_in(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return how many numbers each parameter holds, tied ones once; in 4 bits two share a byte."""
    found = {it: it.numel() for it in model.parameters()}
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            found[cast(nn.Parameter, layer.weight)] = layer.in_features * layer.out_features
    return found
