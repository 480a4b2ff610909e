"""Peak memory of one training step of GPT-2 124M: our loss against whole-vocabulary logits.

    python -m benchmarks.memory

Both sides take the same step (fp32, 8 x 1024 tokens, gradient checkpointing, AdamW), each in a
fresh process, of which the high-water mark counts, less what it held after its imports.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Literal

from jsonargparse import auto_cli

from benchmarks.report import medians, versions

Side = Literal["ours", "whole logits"]


def high_water() -> float:
    """Return the most memory this process has held, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def take_step(side: Side, blocks: int, block_size: int) -> dict[str, float]:
    """Take one training step in this process.

    Returns:
        Peak memory in GB, above what the imports held; seconds; and the loss, to compare.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2_lightning.model.gpt2 import checkpoint_activations
    from gpt2_lightning.model.loss import summed_nats

    torch.manual_seed(0)
    before = high_water()
    model = GPT2LMHeadModel(GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))
    checkpoint_activations(model)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, 50257, (blocks, block_size + 1))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    start = time.perf_counter()
    match side:
        case "ours":
            hidden = model.transformer(inputs, use_cache=False).last_hidden_state
            loss = summed_nats(hidden, model.lm_head.weight, targets) / targets.numel()
        case "whole logits":
            logits = model(inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    return {"GB": high_water() - before, "seconds": seconds, "loss": loss.item()}


def main(
    side: Side | None = None, blocks: int = 8, block_size: int = 1024, repeats: int = 1
) -> None:
    """Measure both sides in turn, or one of them in this process.

    Args:
        side: Measure this side alone and print it as JSON.
        blocks: Blocks in the step.
        block_size: Tokens in a block.
        repeats: Times each side is measured.
    """
    if side is not None:
        print(json.dumps(take_step(side, blocks, block_size)))
        return
    sides: tuple[Side, ...] = ("ours", "whole logits")
    found: dict[Side, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name in sides:
            words = [f"--side={name}", f"--blocks={blocks}", f"--block_size={block_size}"]
            output = subprocess.check_output(
                [sys.executable, "-m", "benchmarks.memory", *words], text=True
            )
            found[name].append(json.loads(output.splitlines()[-1]))
    rows = {name: medians(measured) for name, measured in found.items()}
    print(f"one step of GPT-2 124M, fp32, {blocks} x {block_size} tokens, gradient checkpointing")
    print(f"{'':14}{'peak GB':>9}{'seconds':>9}{'loss':>9}")
    for name, row in rows.items():
        print(f"{name:14}{row['GB']:9.2f}{row['seconds']:9.1f}{row['loss']:9.4f}")
    ours, whole = rows["ours"], rows["whole logits"]
    print(f"less: {whole['GB'] - ours['GB']:.2f} GB; ratio {ours['GB'] / whole['GB']:.2f}")
    print(f"time: ratio {ours['seconds'] / whole['seconds']:.2f}")
    print(versions())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
