"""Text in batches: this project against a loop of single calls of transformers' generate.

    python -m benchmarks.generate
    python -m benchmarks.generate --model lightning_logs/version_0

Both sides continue the same prompts (8 to 32 random tokens) with the same options, the tutorial's,
each by exactly so many tokens, in turn, in one process. The model is a GPT-2 of four layers with
random weights unless another is named. Each single call draws by transformers' own sampling.
"""

import time
from typing import TYPE_CHECKING, Any, cast

from jsonargparse import auto_cli

from benchmarks.report import matrix_product_rate, medians, versions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from gpt2_lightning.model.sampling import SamplingOptions

SHORTEST, LONGEST = 8, 32  # tokens of a prompt


def in_batches(
    model: "PreTrainedModel", prompts: "list[Tensor]", options: "SamplingOptions", batch_size: int
) -> int:
    """Continue the prompts in batches; return the number of new tokens."""
    from gpt2_lightning.model.decoding import generate

    ordered = sorted(prompts, key=len)
    return sum(
        len(ids)
        for start in range(0, len(ordered), batch_size)
        for (ids,) in generate(
            model, ordered[start : start + batch_size], options, end_of_text=end_of_text(model)
        )
    )


def one_by_one(
    model: "PreTrainedModel", prompts: "list[Tensor]", options: "SamplingOptions"
) -> int:
    """Continue each prompt by a call of its own; return the number of new tokens."""
    import torch

    tokens = 0
    for seed, prompt in enumerate(prompts):
        torch.manual_seed(seed)
        ids = prompt.unsqueeze(0)
        output = cast(Any, model).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=end_of_text(model),
            eos_token_id=end_of_text(model),
            do_sample=True,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_new_tokens=options.min_new_tokens,
            max_new_tokens=options.max_new_tokens,
        )
        tokens += output.shape[1] - len(prompt)
    return tokens


def end_of_text(model: "PreTrainedModel") -> int:
    """Return the last id, GPT-2's end-of-text."""
    return int(model.config.vocab_size) - 1


def load(name: str | None) -> "PreTrainedModel":
    """Return a model of that name, or one with random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2_lightning.generate.text_model import load_model

    if name is not None:
        return load_model(name).model
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_head=4, n_embd=256))
    model.eval()
    return model


def main(
    model: str | None = None,
    samples: int = 64,
    tokens: int = 128,
    batch_size: int = 32,
    repeats: int = 3,
) -> None:
    """Measure both sides, in turn.

    Args:
        model: Run folder, .ckpt, folder in Hugging Face format or Hub id; null is a GPT-2 of 4
            layers, 4 heads, width 256 and 50257 tokens, with random weights.
        samples: Prompts, each of which is continued once.
        tokens: New tokens of each.
        batch_size: Samples at a time, on our side.
        repeats: Times each side is measured.
    """
    import torch

    from gpt2_lightning.model.sampling import SamplingOptions

    loaded = load(model)
    chance = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (samples,), generator=chance).tolist()
    prompts = [
        torch.randint(0, end_of_text(loaded), (length,), generator=chance) for length in lengths
    ]
    options = SamplingOptions(max_new_tokens=tokens, min_new_tokens=tokens, num_return_sequences=1)
    found: dict[str, list[dict[str, float]]] = {"in batches": [], "one by one": []}
    in_batches(loaded, prompts[:2], options, batch_size)  # the first calls of kernels
    one_by_one(loaded, prompts[:1], options)
    for _ in range(repeats):
        for side, rows in found.items():
            start = time.perf_counter()
            if side == "in batches":
                made = in_batches(loaded, prompts, options, batch_size)
            else:
                made = one_by_one(loaded, prompts, options)
            seconds = time.perf_counter() - start
            assert made == samples * tokens
            rows.append({"seconds": seconds, "rate": made / seconds})
            print(f"{side:12}{seconds:9.1f} s{made / seconds:9.0f} tokens/s", flush=True)
    ours, theirs = (medians(rows) for rows in found.values())
    print(
        f"\n{samples} samples x {tokens} tokens, {model or '4 layers of 256, random weights'}, "
        f"batches of {batch_size}; medians of {repeats}"
    )
    print(f"in batches  {ours['rate']:9.0f} tokens/s")
    print(f"one by one  {theirs['rate']:9.0f} tokens/s")
    print(f"ratio       {ours['rate'] / theirs['rate']:9.2f}")
    print(f"a matrix product here: {matrix_product_rate('float32'):.0f} x 10^9 operations/s")
    print(versions())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
