"""What training holds of the model: weights, gradients, the optimizer's state, and copies."""

from gpt2_lightning.planning.account import Term, term_of
from gpt2_lightning.planning.setting import Setting


def per_parameter(setting: Setting, name: str, wide: int, times: int = 1) -> Term:
    """Count a number of ``wide`` bytes for each parameter; FSDP deals them out."""
    share = setting.place.processes if setting.place.strategy == "fsdp" else 1
    return term_of(name, [wide * count // share for count in setting.shape.tensors] * times)


def weights(setting: Setting) -> Term:
    """Return the weights."""
    return per_parameter(setting, "weights", setting.precision.weights)


def optimizer_state(setting: Setting) -> Term:
    """Return AdamW's two running means of each weight."""
    return per_parameter(setting, "optimizer state", setting.precision.weights, times=2)


def gradients(setting: Setting) -> list[Term]:
    """Return the gradients, and the copies in which processes exchange them."""
    wide = setting.precision.weights
    found = [per_parameter(setting, "gradients", wide)]
    if setting.place.strategy == "ddp":  # copies of them, which are summed over the processes
        found.append(per_parameter(setting, "gradient buckets", wide))
    return found


def gathered(setting: Setting) -> list[Term]:
    """Return what FSDP gathers of the others' weights: all outside the blocks, and two blocks."""
    if setting.place.strategy != "fsdp":
        return []
    shape, wide = setting.shape, setting.precision.products
    outside = shape.parameters - shape.layers * shape.layer_parameters
    return [
        Term("gathered weights", wide * (outside + 2 * shape.layer_parameters)),
        Term("gradients before they are dealt out", wide * (outside + shape.layer_parameters)),
    ]


def casts(setting: Setting, *, of_layers: bool, of_head: bool) -> list[Term]:
    """Return the narrow copies of weights that mixed precision multiplies with."""
    if not setting.precision.mixed or setting.place.strategy == "fsdp":
        return []
    shape, wide = setting.shape, setting.precision.products
    # a block's matrices are about of one size: a third of them each
    pieces = [wide * shape.layer_matrices // 3] * 3 * shape.layers if of_layers else []
    return [term_of("weights in half", [*pieces, *([wide * shape.embedding] if of_head else [])])]
