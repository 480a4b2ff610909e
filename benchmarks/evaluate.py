"""Scoring a text with a sliding window: this project against the plain loop over transformers.

    python -m benchmarks.evaluate
    python -m benchmarks.evaluate --layers 12 --heads 12 --width 768 --stride 1024 --tokens 8192

Both sides score the same random ids in the same windows (context 1024), on whole weights in fp32,
each in a fresh process: predicted tokens/s, and the process' high-water mark less what it held
with the model loaded. The plain loop takes one window at a time and all of its logits.
"""

import json
import math
import subprocess
import sys
import time
from typing import Literal

from jsonargparse import auto_cli

from benchmarks.memory import high_water
from benchmarks.report import matrix_product_rate, medians, versions

Side = Literal["ours", "plain loop"]
CONTEXT = 1024


def measure(
    side: Side, layers: int, heads: int, width: int, stride: int, tokens: int, batch_size: int
) -> dict[str, float]:
    """Score in this process."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2_lightning.evaluate.scoring import score, sliding_windows

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_head=heads, n_embd=width)
    model = GPT2LMHeadModel(config).eval()
    ids = np.random.default_rng(0).integers(0, config.vocab_size, tokens)
    windows = list(sliding_windows(0, tokens, context=CONTEXT, stride=stride))
    before = high_water()
    start = time.perf_counter()
    match side:
        case "ours":
            found = score(model, ids, windows, batch_size=batch_size)
            nats, predicted = found.total_nats, found.total_predicted
        case "plain loop":
            nats, predicted = 0.0, 0
            for window in windows:
                run = torch.from_numpy(ids[window.begin : window.end])
                labels = run.clone()
                labels[: window.first - window.begin] = -100
                with torch.no_grad():
                    logits = model(run[None]).logits[0, :-1]
                nats += cross_entropy(logits, labels[1:], reduction="sum").item()
                predicted += window.end - window.first
    seconds = time.perf_counter() - start
    return {
        "tokens/s": predicted / seconds,
        "GB": high_water() - before,
        "nats per token": nats / predicted,
    }


def main(
    side: Side | None = None,
    layers: int = 4,
    heads: int = 4,
    width: int = 256,
    stride: int = 512,
    tokens: int = 32768,
    batch_size: int = 8,
    repeats: int = 3,
) -> None:
    """Measure both sides in turn, or one of them in this process.

    Args:
        side: Measure this side alone and print it as JSON.
        layers: Transformer blocks.
        heads: Attention heads.
        width: Size of the hidden states.
        stride: Tokens by which the window moves on.
        tokens: Length of the text.
        batch_size: Windows at a time, on our side.
        repeats: Times each side is measured.
    """
    shape = {
        **{"layers": layers, "heads": heads, "width": width},
        **{"stride": stride, "tokens": tokens, "batch_size": batch_size},
    }
    if side is not None:
        print(json.dumps(measure(side, **shape)))
        return
    sides: tuple[Side, ...] = ("ours", "plain loop")
    found: dict[Side, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name in sides:
            words = [f"--side={name}", *(f"--{key}={value}" for key, value in shape.items())]
            output = subprocess.check_output(
                [sys.executable, "-m", "benchmarks.evaluate", *words], text=True
            )
            found[name].append(json.loads(output.splitlines()[-1]))
    rows = {name: medians(measured) for name, measured in found.items()}
    print(f"{layers} layers of {width}, {tokens} tokens, context {CONTEXT}, stride {stride}")
    print(f"matrix product in float32: {matrix_product_rate('float32'):,.0f} GFLOP/s")
    print(f"{'':12}{'tokens/s':>10}{'GB':>8}{'nats per token':>16}")
    for name, row in rows.items():
        print(f"{name:12}{row['tokens/s']:10,.0f}{row['GB']:8.2f}{row['nats per token']:16.6f}")
    ours, plain = rows["ours"], rows["plain loop"]
    assert math.isclose(ours["nats per token"], plain["nats per token"], rel_tol=1e-5)
    print(f"ratio {ours['tokens/s'] / plain['tokens/s']:.2f}; ", end="")
    print(f"{plain['GB'] - ours['GB']:.2f} GB less")
    print(versions())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
