"""``generate``: continue a prompt with a trained model."""

from gpt2_lightning.arguments import Parser, gather, with_underscores
from gpt2_lightning.errors import UsageError


def generate(
    model: str,
    prompt: list[str],
    num_return_sequences: int | None = None,
    max_new_tokens: int = 100,
    do_sample: bool = True,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 0.95,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Continue a prompt with a trained model.

    Args:
        model: Run folder such as lightning_logs/version_0 (its best model), .ckpt, folder in
            Hugging Face format, or Hub id.
        prompt: Text to continue; may be repeated.
        num_return_sequences: Samples for each prompt.
        max_new_tokens: Tokens to write at most.
        do_sample: Draw at random; false always takes the likeliest token.
        temperature: Below 1 sharpens the distribution, above 1 flattens it.
        top_k: Draw from the k likeliest tokens; 0 for all.
        top_p: Draw from the likeliest tokens that make up this probability.
        seed: Seed of a prompt's first sample; the next ones have the next seeds.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    # heavy imports wait until the words are known to be right
    from gpt2_lightning.data.prompts import encode_prompt
    from gpt2_lightning.inference.checkpoint import load_model
    from gpt2_lightning.inference.device import place
    from gpt2_lightning.model import generation
    from gpt2_lightning.model.sampling import SamplingOptions
    from gpt2_lightning.quiet import quieten

    quieten()
    options = SamplingOptions(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_return_sequences=num_return_sequences,
        seed=seed,
    )
    options.check()
    loaded = load_model(model)
    place(loaded.model, device)
    texts = generation.generate(
        loaded.model,
        [encode_prompt(loaded.tokenizer, text) for text in prompt],
        options,
        end_of_text=loaded.tokenizer.eos_token_id,
    )
    for text, samples in zip(prompt, texts, strict=True):
        for number, ids in zip(options.seeds, samples, strict=True):
            print(f"--- seed {number}\n{text}{loaded.tokenizer.decode(ids)}\n")


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    parser = Parser(prog="gpt2_lightning generate", description="Continue a prompt.")
    parser.add_argument("--config", action="config", help="YAML file of these flags.")
    parser.add_function_arguments(generate, skip={"prompt"})
    parser.add_argument("--prompt", type=list[str], help="Text to continue; may be repeated.")
    # taken out first: the parser would read null, or [1, 2], as something else than text
    rest, prompts = gather(words, "--prompt")
    options = parser.parse_args(with_underscores(rest)).as_dict()
    del options["config"]
    options["prompt"] = prompts or options["prompt"]
    if not options["prompt"]:
        raise UsageError('--prompt: what shall be continued? Write --prompt "Once upon a time".')
    generate(**options)
