"""Where the time of a training step goes, by torch's profiler.

    python -m benchmarks.profile_step

A GPT-2 from scratch, of 16 M parameters unless said, in fp32 on a CPU.
"""

import torch
from jsonargparse import auto_cli
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import matrix_product_rate, versions
from gpt2_lightning.model.gpt2 import Architecture, count_parameters
from gpt2_lightning.model.module import GPT2Module
from gpt2_lightning.model.optim import build_adamw, clip_gradient_norm


def main(
    layers: int = 4,
    heads: int = 4,
    width: int = 256,
    blocks: int = 8,
    block_size: int = 256,
    operations: int = 12,
) -> None:
    """Print the operations that take most of a step's time.

    Args:
        layers: Transformer blocks.
        heads: Attention heads.
        width: Size of the hidden states.
        blocks: Blocks in the step.
        block_size: Tokens in a block.
        operations: Rows to print.
    """
    torch.manual_seed(0)
    module = GPT2Module(
        architecture=Architecture(layers=layers, heads=heads, width=width),
        vocab_size=50257,
        block_size=block_size,
    )
    ids = torch.randint(0, 50257, (blocks, block_size + 1))
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
    optimizer = build_adamw(
        module.named_parameters(),
        decayed=module.decayed,
        learning_rate=1e-4,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        fused=True,
    )

    def step() -> None:
        (module.nats(batch) / ids[:, 1:].numel()).backward()
        clip_gradient_norm(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # warms up
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(versions())
    print(f"matrix product in float32: {matrix_product_rate('float32'):,.0f} GFLOP/s")
    parameters = count_parameters(module.model) / 1e6
    print(f"{parameters:.0f} M parameters, {blocks} x {block_size} tokens: {total / 1e6:.2f} s")
    for row in rows[:operations]:
        print(f"{row.self_cpu_time_total / total:7.1%}  {row.count:4} calls  {row.key}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
