"""A folder in Hugging Face format: written whole, and verified before it counts."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gpt2_lightning.data.tokenizer import set_model_max_length
from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.whole_folder import whole_folder


def write_hf_folder(
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingOptions,
) -> None:
    """Write model, tokenizer and generation settings; the folder appears when it is verified.

    Args:
        target: The folder; one that is there is replaced.
        model: A model on the CPU.
        tokenizer: Its tokenizer.
        sampling: Becomes the folder's ``generation_config.json``.

    Raises:
        RuntimeError: If the written model does not give the model's own logits.
    """
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ends)
    model.generation_config = GenerationConfig(
        **ends,
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.do_sample,
        **(
            {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
            }
            if sampling.do_sample
            else {}
        ),
    )
    set_model_max_length(tokenizer, positions_of(model))
    with whole_folder(target, replace=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _verify(folder, model)


@torch.inference_mode()
def _verify(folder: Path, model: PreTrainedModel) -> None:
    written = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(min(16, positions_of(model))).unsqueeze(0) % model.config.vocab_size
    was_training = model.training
    logits = model.eval()(ids).logits
    model.train(was_training)
    if not torch.equal(logits, written(ids).logits):
        raise RuntimeError(f"{folder}: the written model's logits differ from the model's")
    head, embedding = written.get_output_embeddings(), written.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embedding.weight:
        raise RuntimeError(f"{folder}: the written model's head is not tied to its embedding")
