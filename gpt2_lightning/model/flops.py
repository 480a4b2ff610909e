"""What a model's mathematics needs for a token, in floating-point operations."""

from transformers import PreTrainedModel

from gpt2_lightning.model.causal_lm import count_parameters


def training_flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """Return the floating-point operations of forward and backward pass, per token.

    6 N for the weights that multiply (positions only add) and 12 L D T for attention, with L
    layers of width D and blocks of T tokens. A forward pass alone takes a third of it.

    Reference: Chowdhery et al., "PaLM", https://arxiv.org/abs/2204.02311, appendix B.
    """
    config = model.config
    positions = int(config.max_position_embeddings) * int(config.hidden_size)
    weights = count_parameters(model) - positions
    width = int(config.num_hidden_layers) * int(config.hidden_size)
    return 6.0 * weights + 12.0 * width * block_size
