"""The memory account of a run: what a device holds, moment by moment."""

from collections.abc import Iterable
from dataclasses import dataclass

from gpt2_lightning.model.loss import ROWS_AT_A_TIME
from gpt2_lightning.planning.activations import (
    FP32,
    gradients_on_the_way,
    kept_by_a_layer,
    kept_by_checkpointing,
    kept_outside,
)
from gpt2_lightning.planning.setting import Setting

# glibc gives larger pieces back to the system when they are freed; smaller ones stay with the
# process (M_MMAP_THRESHOLD in mallopt(3): at most 32 MiB where longs have 64 bits).
LARGE = 32 * 2**20
# What is loaded when it is first used: the model's code, TensorBoard, tokenizer and data files,
# math libraries. Measured as the peak of a run whose model is next to nothing (one layer of 8).
LIBRARIES = 110_000_000
REPORT = 120_000_000  # on top, at the end: what draws the report; measured on the same run
# Python and the libraries at their import; part of a CPU's memory, not of the peak above it.
IMPORTS = 470_000_000
# A GPU's: the CUDA context and the workspaces of its math library. Not measured here.
CONTEXT = 600_000_000


@dataclass(frozen=True)
class Term:
    """A line of the account.

    Attributes:
        name: What it is.
        size: Bytes.
        small: Of these, bytes in pieces that a CPU's allocator keeps when they are freed.
    """

    name: str
    size: int
    small: int = 0


@dataclass(frozen=True)
class Moment:
    """What is held at a moment of the run.

    Attributes:
        name: The moment.
        terms: What is held.
    """

    name: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(term.size for term in self.terms)


@dataclass(frozen=True)
class Account:
    """The moments of a run, in time.

    Attributes:
        moments: What is held at each.
        imports: Bytes that the libraries took before, where they share the device's memory.
    """

    moments: tuple[Moment, ...]
    imports: int

    @property
    def peak(self) -> Moment:
        """The moment that holds most."""
        return max(self.moments, key=lambda moment: moment.size)

    @property
    def needed(self) -> int:
        """Bytes that the device has to have for the process."""
        return self.peak.size + self.imports


def account(setting: Setting) -> Account:
    """Add up what each device holds.

    Args:
        setting: The run.
    """
    moments = [_loading(setting), *_training(setting)]
    if setting.validates:
        moments.append(_validation(setting))
    if not setting.on_cpu:
        context = Term("CUDA context and workspaces", CONTEXT)
        return Account(tuple(_with(moment, context) for moment in moments), 0)
    moments += _writing(setting)
    libraries = Term("libraries, loaded when used", LIBRARIES)
    heap = _heap(setting)
    whole = [_with(moments[0], libraries)]
    for moment in moments[1:]:
        idle = Term("kept by the allocator", max(heap - _small(moment), 0))
        whole.append(_with(moment, libraries, *([idle] if idle.size else [])))
    return Account(tuple(whole), IMPORTS)


def _heap(setting: Setting) -> int:
    """Return what small pieces take of a process' memory, once it has trained for a while.

    What is freed in small pieces is never given back, and serves the next need but in part: where
    pieces come and go, half as much as they take lies in holes between them. That is Knuth's
    unused memory rule (The Art of Computer Programming, volume 1, section 2.5): a share of
    k / (k + 2) is unused where holes are k times as large as pieces. Here k is 1, since a hole of
    a piece's own size does not serve it: room for the alignment is sought beside it.
    """
    lasting = sum(term.small for term in (*_weights(setting), _optimizer_state(setting)))
    most = max(_small(moment) for moment in _training(setting))
    return most + (most - lasting) // 2


def _with(moment: Moment, *terms: Term) -> Moment:
    return Moment(moment.name, (*moment.terms, *terms))


def _small(moment: Moment) -> int:
    return sum(term.small for term in moment.terms)


def _term(name: str, pieces: Iterable[int]) -> Term:
    sizes = list(pieces)
    return Term(name, sum(sizes), sum(size for size in sizes if size < LARGE))


# --- the model and its optimizer ------------------------------------------------------------------


def _parameters(setting: Setting, name: str, wide: int, times: int = 1) -> Term:
    """Count a number of ``wide`` bytes for each parameter; FSDP deals them out."""
    share = setting.place.processes if setting.place.strategy == "fsdp" else 1
    return _term(name, [wide * count // share for count in setting.shape.tensors] * times)


def _weights(setting: Setting) -> list[Term]:
    return [_parameters(setting, "weights", setting.precision.weights)]


def _optimizer_state(setting: Setting) -> Term:
    return _parameters(setting, "optimizer state", setting.precision.weights, times=2)


def _gradients(setting: Setting) -> list[Term]:
    wide = setting.precision.weights
    found = [_parameters(setting, "gradients", wide)]
    if setting.place.strategy == "ddp":  # copies of them, which are summed over the processes
        found.append(_parameters(setting, "gradient buckets", wide))
    return found


def _gathered(setting: Setting) -> list[Term]:
    """Return what FSDP gathers of the others' weights: all outside the blocks, and two blocks."""
    if setting.place.strategy != "fsdp":
        return []
    shape, wide = setting.shape, setting.precision.products
    outside = shape.parameters - shape.layers * shape.layer_parameters
    return [
        Term("gathered weights", wide * (outside + 2 * shape.layer_parameters)),
        Term("gradients before they are dealt out", wide * (outside + shape.layer_parameters)),
    ]


def _casts(setting: Setting, *, of_layers: bool, of_head: bool) -> list[Term]:
    """Return the narrow copies of weights that mixed precision multiplies with."""
    if not setting.precision.mixed or setting.place.strategy == "fsdp":
        return []
    shape, wide = setting.shape, setting.precision.products
    # a block's matrices are about of one size: a third of them each
    pieces = [wide * shape.layer_matrices // 3] * 3 * shape.layers if of_layers else []
    return [_term("weights in half", [*pieces, *([wide * shape.embedding] if of_head else [])])]


# --- moments --------------------------------------------------------------------------------------


def _loading(setting: Setting) -> Moment:
    """Return the start: weights beside the file that they come from, or the embedding's first."""
    return Moment("loading", (*_weights(setting), _parameters(setting, "their file", FP32)))


def _training(setting: Setting) -> list[Moment]:
    return [_loss(setting), _loss_backward(setting), _backward(setting), _update(setting)]


def _activations(setting: Setting) -> list[Term]:
    layers, checkpointing = setting.shape.layers, setting.checkpointing
    each = kept_by_checkpointing(setting) if checkpointing else kept_by_a_layer(setting)
    return [_term("activations", [*each * layers, *kept_outside(setting)])]


def _logits(setting: Setting, copies: int) -> int:
    """Return bytes of so many copies of a piece of the logits, each of one byte a number."""
    return copies * min(setting.rows, ROWS_AT_A_TIME) * setting.shape.vocabulary


def _head_gradient(setting: Setting) -> Term:
    return _term("gradient of the head", [setting.precision.weights * setting.shape.embedding])


def _loss(setting: Setting) -> Moment:
    """Return the end of the forward pass, where the last step's gradients are still there.

    Lightning drops them when the loss is known. In fp32 the loss makes its gradients at once, in
    one buffer of logits; under autocast it holds the logits in half and fp32, and their logarithms.
    """
    if setting.precision.mixed:
        piece = [_logits(setting, setting.precision.products), *[_logits(setting, FP32)] * 2]
        loss = [*_casts(setting, of_layers=True, of_head=True), _term("logits chunk", piece)]
    else:
        loss = [*_chunk_in_one_type(setting), _head_gradient(setting)]
    return Moment(
        "forward pass and loss",
        (
            *_weights(setting),
            *_gradients(setting),
            _optimizer_state(setting),
            *_gathered(setting),
            *_activations(setting),
            *loss,
        ),
    )


def _chunk_in_one_type(setting: Setting) -> list[Term]:
    wide = setting.precision.weights
    pieces = [_logits(setting, max(wide, FP32)), wide * setting.rows * setting.shape.width]
    if wide < FP32:  # sums are taken in fp32: copies of the head and of its gradient, and logits
        pieces += [FP32 * setting.shape.embedding] * 2 + [_logits(setting, FP32)]
    return [_term("logits chunk", pieces)]


def _loss_backward(setting: Setting) -> Moment:
    """Return the backward pass of the loss under autocast, which computes its logits again."""
    terms = [*_weights(setting), _optimizer_state(setting), *_gathered(setting)]
    if setting.accumulate > 1:
        terms += _gradients(setting)
    terms += _activations(setting)
    if setting.precision.mixed:
        terms += _casts(setting, of_layers=not setting.checkpointing, of_head=True)
        terms.append(_term("logits chunk", [_logits(setting, FP32)] * 3))
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
    terms = [*_weights(setting), _optimizer_state(setting), *_gathered(setting)]
    if setting.accumulate > 1:
        terms += _gradients(setting)
    terms += _activations(setting)
    if setting.checkpointing:
        terms.append(_term("activations of a block", kept_by_a_layer(setting)))
        terms += _casts(setting, of_layers=False, of_head=False)
    else:
        terms += _casts(setting, of_layers=True, of_head=False)
    terms.append(_term("gradients of hidden states", gradients_on_the_way(setting)))
    terms.append(_head_gradient(setting))
    return Moment("backward pass", tuple(terms))


def _update(setting: Setting) -> Moment:
    """Return the optimizer's step, and before it the embedding's gradient beside the head's."""
    terms = [*_weights(setting), *_gradients(setting), _optimizer_state(setting)]
    if setting.precision.scaled:  # AdamW is not fused, and takes roots of all parameters at once
        terms.append(_parameters(setting, "temporaries of the optimizer", FP32))
    elif setting.shape.tied:
        terms.append(_head_gradient(setting))
    return Moment("last gradient and optimizer step", tuple(terms))


def _validation(setting: Setting) -> Moment:
    """Return a validation, before which Lightning drops the gradients."""
    copies = FP32 + (FP32 + setting.precision.products if setting.precision.mixed else 0)
    return Moment(
        "validation",
        (
            *_weights(setting),
            _optimizer_state(setting),
            *_gathered(setting),
            *_casts(setting, of_layers=True, of_head=True),
            _term("hidden states", gradients_on_the_way(setting)),
            _term("logits chunk", [_logits(setting, copies)]),
        ),
    )


def _writing(setting: Setting) -> list[Moment]:
    """Return what is held beside the run when its files are written, in a CPU's memory."""
    held = [*_weights(setting), _optimizer_state(setting)]
    if not setting.validates:
        held += _gradients(setting)
    found = []
    wide = setting.precision.weights
    count = setting.shape.parameters
    if setting.saves:  # Lightning writes a checkpoint to memory first
        copy = Term("checkpoint, before it is on disk", 3 * wide * count)
        found.append(Moment("writing a checkpoint", (*held, copy)))
    if setting.exports:
        models = Term("model of hf/, and as it is read back", 2 * FP32 * count)
        found.append(Moment("writing hf/", (*held, models)))
        found.append(Moment("writing the report", (*held, Term("what draws it", REPORT))))
    return found
