"""What the forward pass keeps for the backward pass, tensor by tensor.

After Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
https://arxiv.org/abs/2205.05198, section 4, with the terms of this package's own model: GELU in one
kernel, attention in torch's fused one, dropout as the device does it.
"""

from gpt2_lightning.planning.setting import Setting

FP32 = 4  # bytes
Tensors = list[int]  # bytes of each


def kept_by_a_layer(setting: Setting) -> Tensors:
    """Return what a transformer block keeps, in the order in which it is made.

    Args:
        setting: With R rows of width D, MLP width I, r bytes between layers and p in products.

    Returns:
        Bytes of each tensor: inputs of both layer norms (r R D each) with mean and deviation,
        outputs of both (p R D), query, key and value (3 p R D), attention's output (p R D) and
        what it keeps beside it, the two widest hidden states (2 p R I), and two dropout masks.
    """
    shape, p, rows = setting.shape, setting.precision.products, setting.rows
    between = _between_layers(setting)
    wide = p * rows * shape.inner
    return [
        between,
        *(2 * [FP32 * rows]),
        p * rows * shape.width,
        *_kept_by_attention(setting),
        *_mask(setting, p),
        between,
        *(2 * [FP32 * rows]),
        p * rows * shape.width,
        wide,
        wide,
        *_mask(setting, p),
    ]


def _kept_by_attention(setting: Setting) -> Tensors:
    shape, p, rows = setting.shape, setting.precision.products, setting.rows
    state = p * rows * shape.width
    pairs = shape.heads * setting.batch_size * setting.block_size**2
    drops = shape.attention_dropout
    if setting.attention == "eager":
        # softmax is fp32 under autocast; its narrow copy, or the mask and what it leaves, stay too
        mixed = setting.precision.mixed
        softmax = pairs * (FP32 if mixed else p)
        others = 2 * [pairs * p] if drops else [pairs * p] if mixed else []
        return [3 * state, state, softmax, *others]
    if drops and setting.on_cpu:  # off the fused path, and in fp32: q, k, v and three matrices
        return [*(3 * [FP32 * rows * shape.width]), state, *(3 * [FP32 * pairs])]
    mask = [p * setting.batch_size * setting.block_size**2] if setting.padded else []
    return [3 * state, state, FP32 * rows * shape.heads, *mask]


def kept_outside(setting: Setting) -> Tensors:
    """Return what is kept before the first and after the last block: r R D, a few times."""
    between = _between_layers(setting)
    norm = 2 * [FP32 * setting.rows]
    embedded = _mask(setting, between // (setting.rows * setting.shape.width))
    eager = setting.attention == "eager" and setting.checkpointing
    mask = [FP32 * setting.batch_size * setting.block_size**2] if eager else []
    return [*embedded, *mask, between, *norm, between]


def kept_by_checkpointing(setting: Setting) -> Tensors:
    """Return what is kept of a block whose activations are computed again: its input."""
    return [_between_layers(setting)]


def gradients_on_the_way(setting: Setting) -> Tensors:
    """Return the gradients of hidden states that the backward pass holds at a block's widest."""
    p, shape = setting.precision.products, setting.shape
    return [*(2 * [p * setting.rows * shape.inner]), _between_layers(setting)]


def _between_layers(setting: Setting) -> int:
    precision = setting.precision
    wide = FP32 if precision.mixed else precision.products
    return wide * setting.rows * setting.shape.width


def _mask(setting: Setting, wide: int) -> Tensors:
    """Return a dropout mask: torch keeps booleans on a GPU, and the scaled noise on a CPU."""
    if not setting.shape.dropout:
        return []
    each = wide if setting.on_cpu else 1
    return [each * setting.rows * setting.shape.width]
