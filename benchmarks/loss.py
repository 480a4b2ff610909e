"""The loss and its gradients: in pieces of several sizes, against whole-vocabulary logits.

    python -m benchmarks.loss

GPT-2 124M's head (768 x 50,257) over 2,048 rows; every way is taken in turn.
"""

import time
from functools import partial

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import cross_entropy, linear_cross_entropy

from benchmarks.report import matrix_product_rate, medians, versions
from gpt2_lightning.model import loss


def in_pieces(rows: int) -> LinearCrossEntropyOptions:
    """Return the options that hold the logits of so many rows at a time."""
    return LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)


def main(rows: int = 2048, width: int = 768, vocabulary: int = 50257, repeats: int = 5) -> None:
    """Print seconds of forward and backward pass.

    Args:
        rows: Positions.
        width: Size of the hidden states.
        vocabulary: Tokens.
        repeats: Times each way is measured, in turn.
    """
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(vocabulary, width) * 0.02)
    hidden = torch.randn(1, rows, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (1, rows))

    def whole() -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight)
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")

    def pieces(size: int) -> Tensor:
        return linear_cross_entropy(
            hidden.flatten(0, -2),
            weight,
            targets.flatten(),
            reduction="sum",
            options=in_pieces(size),
        )

    def ours() -> Tensor:
        return loss.summed_nats(hidden, weight, targets)

    ways = {"ours": ours, "whole logits": whole}
    ways |= {f"{size} rows": partial(pieces, size) for size in (256, 1024, 2048)}
    print(versions())
    print(f"matrix product in float32: {matrix_product_rate('float32'):,.0f} GFLOP/s")
    print(f"{rows} x {width} x {vocabulary}{'seconds':>16}{'ratio to whole logits':>24}")
    for mixed in (False, True):
        if mixed and matrix_product_rate("bfloat16") < matrix_product_rate("float32") / 2:
            print("bf16 is left out: this processor has no instructions for it")
            continue
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    way().backward()
                measured[name].append({"seconds": time.perf_counter() - start})
        rows_of = {name: medians(found)["seconds"] for name, found in measured.items()}
        for name, seconds in rows_of.items():
            label = f"{'bf16' if mixed else 'fp32'} {name}"
            print(f"{label:24}{seconds:12.2f}{seconds / rows_of['whole logits']:20.2f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
