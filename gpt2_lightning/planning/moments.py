"""The moments of a run, and what is held at each."""

from gpt2_lightning.model.loss import ROWS_AT_A_TIME
from gpt2_lightning.planning.account import Moment, Term, term_of
from gpt2_lightning.planning.activations import (
    FP32,
    gradients_on_the_way,
    kept_by_a_layer,
    kept_by_checkpointing,
    kept_outside,
)
from gpt2_lightning.planning.holdings import (
    casts,
    gathered,
    gradients,
    optimizer_state,
    per_parameter,
    weights,
)
from gpt2_lightning.planning.setting import Setting

# What draws the report, at the end; measured as the libraries of memory.py are.
REPORT = 120_000_000


def loading(setting: Setting) -> Moment:
    """Return the start: weights beside the file that they come from, or the embedding's first."""
    return Moment("loading", (weights(setting), per_parameter(setting, "their file", FP32)))


def training(setting: Setting) -> list[Moment]:
    """Return the moments of an optimizer step."""
    return [_loss(setting), _loss_backward(setting), _backward(setting), _update(setting)]


def _activations(setting: Setting) -> list[Term]:
    layers, checkpointing = setting.shape.layers, setting.checkpointing
    each = kept_by_checkpointing(setting) if checkpointing else kept_by_a_layer(setting)
    return [term_of("activations", [*each * layers, *kept_outside(setting)])]


def _logits(setting: Setting, copies: int) -> int:
    """Return bytes of so many copies of a piece of the logits, each of one byte a number."""
    return copies * min(setting.rows, ROWS_AT_A_TIME) * setting.shape.vocabulary


def _head_gradient(setting: Setting) -> Term:
    return term_of("gradient of the head", [setting.precision.weights * setting.shape.embedding])


def _loss(setting: Setting) -> Moment:
    """Return the end of the forward pass, where the last step's gradients are still there.

    Lightning drops them when the loss is known. In fp32 the loss makes its gradients at once, in
    one buffer of logits; under autocast it holds the logits in half and fp32, and their logarithms.
    """
    if setting.precision.mixed:
        piece = [_logits(setting, setting.precision.products), *[_logits(setting, FP32)] * 2]
        loss = [*casts(setting, of_layers=True, of_head=True), term_of("logits chunk", piece)]
    else:
        loss = [*_chunk_in_one_type(setting), _head_gradient(setting)]
    return Moment(
        "forward pass and loss",
        (
            weights(setting),
            *gradients(setting),
            optimizer_state(setting),
            *gathered(setting),
            *_activations(setting),
            *loss,
        ),
    )


def _chunk_in_one_type(setting: Setting) -> list[Term]:
    wide = setting.precision.weights
    pieces = [_logits(setting, max(wide, FP32)), wide * setting.rows * setting.shape.width]
    if wide < FP32:  # sums are taken in fp32: copies of the head and of its gradient, and logits
        pieces += [FP32 * setting.shape.embedding] * 2 + [_logits(setting, FP32)]
    return [term_of("logits chunk", pieces)]


def _loss_backward(setting: Setting) -> Moment:
    """Return the backward pass of the loss under autocast, which computes its logits again."""
    terms = [weights(setting), optimizer_state(setting), *gathered(setting)]
    if setting.accumulate > 1:
        terms += gradients(setting)
    terms += _activations(setting)
    if setting.precision.mixed:
        terms += casts(setting, of_layers=not setting.checkpointing, of_head=True)
        terms.append(term_of("logits chunk", [_logits(setting, FP32)] * 3))
        if setting.rows > ROWS_AT_A_TIME:  # of the pieces before
            terms.append(_head_gradient(setting))
    else:
        terms.append(_head_gradient(setting))
    return Moment("backward pass of the loss", tuple(terms))


def _backward(setting: Setting) -> Moment:
    """Return the backward pass: gradients come while activations go, a block at a time.

    The last block's are still there when the first gradients are; where activations were not
    kept, one block's are made again.
    """
    terms = [weights(setting), optimizer_state(setting), *gathered(setting)]
    if setting.accumulate > 1:
        terms += gradients(setting)
    terms += _activations(setting)
    if setting.checkpointing:
        terms.append(term_of("activations of a block", kept_by_a_layer(setting)))
    else:
        terms += casts(setting, of_layers=True, of_head=False)
    terms.append(term_of("gradients of hidden states", gradients_on_the_way(setting)))
    terms.append(_head_gradient(setting))
    return Moment("backward pass", tuple(terms))


def _update(setting: Setting) -> Moment:
    """Return the optimizer's step, and before it the embedding's gradient beside the head's."""
    terms = [weights(setting), *gradients(setting), optimizer_state(setting)]
    if setting.precision.scaled:  # AdamW is not fused, and takes roots of all parameters at once
        terms.append(per_parameter(setting, "temporaries of the optimizer", FP32))
    elif setting.shape.tied:
        terms.append(_head_gradient(setting))
    return Moment("last gradient and optimizer step", tuple(terms))


def validation(setting: Setting) -> Moment:
    """Return a validation, before which Lightning drops the gradients."""
    copies = FP32 + (FP32 + setting.precision.products if setting.precision.mixed else 0)
    return Moment(
        "validation",
        (
            weights(setting),
            optimizer_state(setting),
            *gathered(setting),
            *casts(setting, of_layers=True, of_head=True),
            term_of("hidden states", gradients_on_the_way(setting)),
            term_of("logits chunk", [_logits(setting, copies)]),
        ),
    )


def writing(setting: Setting) -> list[Moment]:
    """Return what is held beside the run when its files are written, in a CPU's memory."""
    held = [weights(setting), optimizer_state(setting)]
    if not setting.validates:
        held += gradients(setting)
    found = []
    count = setting.shape.parameters
    if setting.exports:
        models = Term("model of hf/, and as it is read back", 2 * FP32 * count)
        found.append(Moment("writing hf/", (*held, models)))
        found.append(Moment("writing the report", (*held, Term("what draws it", REPORT))))
    return found
