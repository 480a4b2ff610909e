"""A folder in Hugging Face format: written whole, and verified before it counts."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gpt2_lightning.data.tokenizer import keeps_every_byte, set_model_max_length
from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.pretrained import load_config, load_tokenizer_files, load_weights
from gpt2_lightning.storage import whole_folder

# what a tokenizer may stumble over: spaces, line ends, marks, several scripts, characters of
# several code points, and the end-of-text itself
DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")  # options of sampling
TEXTS = (
    "The river, they said, had risen twice.",
    " leading  and trailing \n\n\tspaces @-@ and 1,024 figures \n",
    "naïve café — “quoted”, 你好，世界。 Привет مرحبا",
    "👩‍🚀🇨🇭 e\u0301 \u200b don't",
    "one<|endoftext|>two",
)


def write_hf_folder(
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingOptions | None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write model, tokenizer and generation settings; the folder appears when it is verified.

    Args:
        target: The folder; one that is there is replaced.
        model: A model on the CPU; the folder has its weights in its type.
        tokenizer: Its tokenizer.
        sampling: Becomes the folder's ``generation_config.json``; null keeps the model's own, with
            the tokenizer's ends.
        finish: Is given the verified folder, to add to it, just before it takes its place.

    Raises:
        RuntimeError: If the written model or tokenizer does not give what the given one does.
    """
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ends)
    if model.config.model_type == "gpt2":
        # transformers has dropped it, and llama.cpp's converter looks for no other
        model.config.update({"n_ctx": positions_of(model)})
    if sampling is None:
        model.generation_config = _kept(model.generation_config, ends)
    else:
        model.generation_config = _generation_config(sampling, ends)
    set_model_max_length(tokenizer, positions_of(model))
    with whole_folder(target, replace=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():  # safetensors keeps the weights from every other user
            file.chmod((folder / "config.json").stat().st_mode)
        _verify_model(folder, model)
        _verify_tokenizer(folder, tokenizer)
        if finish is not None:
            finish(folder)


def _generation_config(sampling: SamplingOptions, ends: dict[str, int | None]) -> GenerationConfig:
    """Return the options for transformers; of those that are rarely set, the ones that are.

    Stop strings are left out: with them its `generate` refuses to run without a tokenizer.
    """
    names = ["max_new_tokens", "do_sample"]
    rare = ["min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams"]
    if sampling.do_sample:
        names += ["temperature", "top_k", "top_p"]
        rare += ["min_p", "typical_p"]
    default = SamplingOptions()
    names += [name for name in rare if getattr(sampling, name) != getattr(default, name)]
    return GenerationConfig(**ends, **{name: getattr(sampling, name) for name in names})


def _kept(given: GenerationConfig, ends: dict[str, int | None]) -> GenerationConfig:
    """Return a model's own options, but for those that transformers would refuse to write."""
    if not given.do_sample:
        given.update(**dict.fromkeys(DRAWING))  # they mean nothing without it
    given.update(**ends)
    try:
        given.validate(strict=True)
    except ValueError:
        return GenerationConfig(**ends)
    return given


@torch.inference_mode()
def _verify_model(folder: Path, model: PreTrainedModel) -> None:
    config = load_config(str(folder), said=str(folder))
    written = load_weights(str(folder), config).eval()
    ids = torch.arange(min(16, positions_of(model))).unsqueeze(0) % model.config.vocab_size
    was_training = model.training
    logits = model.eval()(ids).logits
    model.train(was_training)
    if not torch.equal(logits, written(ids).logits):
        raise RuntimeError(f"{folder}: the written model's logits differ from the model's")
    weights = written.state_dict()
    for name, value in model.state_dict().items():  # more than a few ids and positions touch
        if not torch.equal(value, weights[name]):
            raise RuntimeError(f"{folder}: the written {name} differs from the model's")
    head, embedding = written.get_output_embeddings(), written.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embedding.weight:
        raise RuntimeError(f"{folder}: the written model's head is not tied to its embedding")


def _verify_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    written = load_tokenizer_files(str(folder), said=str(folder))
    if written.eos_token_id != tokenizer.eos_token_id:
        raise RuntimeError(f"{folder}: the written tokenizer ends texts with another token")
    lossless = keeps_every_byte(tokenizer)
    for text in TEXTS:
        # not verbose: a model of few positions has room for none of them
        ids = tokenizer(text, verbose=False)["input_ids"]
        back = written.decode(ids, clean_up_tokenization_spaces=False)
        # some put a space before every text
        if written(text, verbose=False)["input_ids"] != ids or (
            lossless and back not in (text, f" {text}")
        ):
            raise RuntimeError(f"{folder}: the written tokenizer reads {text!r} otherwise")
