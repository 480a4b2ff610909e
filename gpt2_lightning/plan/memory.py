"""What is held in memory at each phase of a run: weights, states, gradients, activations.

What the forward pass keeps for the backward pass, tensor by tensor.

After Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
https://arxiv.org/abs/2205.05198, section 4, with the items of this package's own model: GELU in one
kernel, attention in torch's fused one, dropout as the device does it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gpt2_lightning.model.gpt2 import AttentionName
from gpt2_lightning.model.loss import ROWS_AT_A_TIME
from gpt2_lightning.model.quantized import bytes_in_4_bits
from gpt2_lightning.plan.hardware import Hardware
from gpt2_lightning.plan.shape import Precision, Shape

# glibc gives larger pieces back to the system when they are freed; smaller ones stay with the
# process (M_MMAP_THRESHOLD in mallopt(3): at most 32 MiB where longs have 64 bits).
LARGE = 32 * 2**20
FP32 = 4  # bytes

# What the report takes at the end: curves read from the events, and the page. Measured: 4 MB for
# 12 steps; some hundred bytes a logged number.
REPORT = 10_000_000

# What is loaded when it is first used: the model's code, TensorBoard, tokenizer and data files,
# math libraries. Measured as the peak of a run whose model is next to nothing (one layer of 8).
LIBRARIES = 110_000_000

# Python and the libraries at their import; part of a CPU's memory, not of the peak above it.
IMPORTS = 470_000_000

# A GPU's: the CUDA context and the workspaces of its math library. Not measured here.
CONTEXT = 600_000_000


@dataclass(frozen=True)
class Setting:
    """A model, a micro-batch, and where and how it is trained.

    Attributes:
        shape: The model's.
        precision: Widths of its numbers.
        hardware: Its devices.
        batch_size: Blocks in a micro-batch of a process.
        block_size: Tokens in a block.
        padded: Whether attention is masked: of padding, or of other documents.
        attention: Its implementation.
        checkpointing: Whether activations are computed again in the backward pass.
        accumulate: Micro-batches in an optimizer step.
        saves: Whether checkpoints are written.
        exports: Whether the run ends with hf/ and a report.
        validates: Whether it validates.
        averages: Whether a moving average of the weights is kept.
    """

    shape: Shape
    precision: Precision
    hardware: Hardware
    batch_size: int
    block_size: int
    padded: bool = False
    attention: AttentionName = "sdpa"
    checkpointing: bool = False
    accumulate: int = 1
    saves: bool = True
    exports: bool = True
    validates: bool = True
    averages: bool = False

    @property
    def rows(self) -> int:
        """Positions in a micro-batch."""
        return self.batch_size * self.block_size

    @property
    def on_cpu(self) -> bool:
        """Whether the device's memory is the process' own."""
        return self.hardware.accelerator != "cuda"

    def with_micro_batch(self, batch_size: int) -> "Setting":
        """Return the same global batch in smaller micro-batches, of which there are more."""
        blocks = self.batch_size * self.accumulate
        return replace(self, batch_size=batch_size, accumulate=blocks // batch_size)


@dataclass(frozen=True)
class MemoryItem:
    """A line of the estimate.

    Attributes:
        name: What it is.
        size: Bytes.
        small: Of these, bytes in pieces that a CPU's allocator keeps when they are freed.
    """

    name: str
    size: int
    small: int = 0


@dataclass(frozen=True)
class Phase:
    """What is held at a phase of the run.

    Attributes:
        name: The phase.
        items: What is held.
    """

    name: str
    items: tuple[MemoryItem, ...]

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(item.size for item in self.items)


@dataclass(frozen=True)
class MemoryEstimate:
    """The phases of a run, in time.

    Attributes:
        phases: What is held at each.
        imports: Bytes that the libraries took before, where they share the device's memory.
    """

    phases: tuple[Phase, ...]
    imports: int

    @property
    def peak(self) -> Phase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.size)

    @property
    def needed(self) -> int:
        """Bytes that the device has to have for the process."""
        return self.peak.size + self.imports


def item_of(name: str, pieces: Iterable[int]) -> MemoryItem:
    """Return an item that is held in pieces of so many bytes."""
    sizes = list(pieces)
    return MemoryItem(name, sum(sizes), sum(size for size in sizes if size < LARGE))


Tensors = list[int]  # bytes of each


def kept_by_a_layer(setting: Setting) -> Tensors:
    """Return what a transformer block keeps, in the order in which it is made.

    Args:
        setting: With R rows of width D, MLP width I, r bytes between layers and p in products.

    Returns:
        Bytes of each tensor: inputs of both layer norms (r R D each) with mean and deviation,
        outputs of both (p R D), query, key and value (3 p R D), attention's output (p R D) and
        what it keeps beside it, the two widest hidden states (2 p R I), and two dropout masks;
        and what a LoRA adapter keeps.
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
        *_kept_by_adapter(setting),
    ]


def _kept_by_adapter(setting: Setting) -> Tensors:
    """Return what the adapters of a block keep: p R for each rank, and dropout masks (R (3 D + I)).

    In mixed precision attention's output stays as well: its copy in half is no longer the one that
    attention keeps.
    """
    shape, p, rows = setting.shape, setting.precision.products, setting.rows
    if not shape.rank:
        return []
    of_attention = [p * rows * shape.width] if setting.precision.mixed else []
    wide = (FP32 if setting.precision.mixed else p) if setting.on_cpu else 1
    masks = [wide * rows * it for it in (*(3 * [shape.width]), shape.inner)]
    return [
        *(4 * [p * rows * shape.rank]),
        *of_attention,
        *(masks if shape.adapter_dropout else []),
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


def per_parameter(
    setting: Setting, name: str, wide: int, times: int = 1, *, trained: bool = False
) -> MemoryItem:
    """Count a number of ``wide`` bytes for each parameter, or trained one; FSDP deals them out."""
    share = setting.hardware.processes if setting.hardware.strategy == "fsdp" else 1
    shape = setting.shape
    counts = shape.trained if trained else (*shape.tensors, *shape.adapter)
    return item_of(name, [wide * count // share for count in counts] * times)


def weights(setting: Setting) -> MemoryItem:
    """Return the weights, some perhaps in 4 bits; FSDP deals out none of those."""
    wide, shape = setting.precision.weights, setting.shape
    if not shape.quantized:
        return per_parameter(setting, "weights", wide)
    whole = (Counter(shape.tensors) - Counter(shape.quantized)).elements()
    pieces = [wide * it for it in (*whole, *shape.adapter)]
    return item_of("weights", [*pieces, *map(bytes_in_4_bits, shape.quantized)])


def optimizer_state(setting: Setting) -> MemoryItem:
    """Return AdamW's two running means of each weight, and the weights' own; Muon has but one.

    A LoRA adapter alone has any, where there is one; so it is with gradients.
    """
    name, times = ("state and average", 3) if setting.averages else ("state", 2)
    wide = setting.precision.weights
    return per_parameter(setting, f"optimizer {name}", wide, times, trained=True)


def gradients(setting: Setting) -> list[MemoryItem]:
    """Return the gradients, and the copies in which processes exchange them."""
    wide = setting.precision.weights
    found = [per_parameter(setting, "gradients", wide, trained=True)]
    if setting.hardware.strategy == "ddp":  # copies of them, which are summed over the processes
        found.append(per_parameter(setting, "gradient buckets", wide, trained=True))
    return found


def gathered(setting: Setting) -> list[MemoryItem]:
    """Return what FSDP gathers of the others' weights: all outside the blocks, and two blocks."""
    if setting.hardware.strategy != "fsdp":
        return []
    shape, precision = setting.shape, setting.precision
    outside = precision.weights * (shape.parameters - shape.layers * shape.layer_parameters)
    layer = precision.products * shape.layer_parameters
    return [
        MemoryItem("gathered weights", outside + 2 * layer),
        MemoryItem("gradients before they are dealt out", outside + layer),
    ]


def casts(setting: Setting, *, of_layers: bool, of_head: bool) -> list[MemoryItem]:
    """Return the narrow copies of weights that mixed precision multiplies with."""
    if not setting.precision.mixed:
        return []
    shape, wide = setting.shape, setting.precision.products
    of_layers &= setting.hardware.strategy != "fsdp"  # which gathers them so
    of_layers &= not shape.quantized
    # a block's matrices are about of one size: a third of them each
    pieces = [wide * shape.layer_matrices // 3] * 3 * shape.layers if of_layers else []
    return [item_of("weights in half", [*pieces, *([wide * shape.embedding] if of_head else [])])]


def dequantized(setting: Setting) -> list[MemoryItem]:
    """Return a matrix of 4 bits in fp32 and in the type of products, as the backward pass needs it.

    The forward pass needs it in that type alone.
    """
    if not setting.shape.quantized:
        return []
    narrow = setting.precision.products
    each = [FP32, narrow] if narrow < FP32 else [FP32]
    return [item_of("a dequantized matrix", [it * max(setting.shape.quantized) for it in each])]


def loading(setting: Setting) -> Phase:
    """Return the start: weights beside the file that they come from, or the embedding's first.

    Where they are to be sharded or quantized, each process of a CPU has them whole here.
    """
    if setting.on_cpu:
        setting = replace(setting, shape=replace(setting.shape, quantized=()))
    if setting.hardware.strategy == "fsdp" and setting.hardware.accelerator == "cpu":
        setting = replace(setting, hardware=setting.hardware.with_strategy("ddp"))
    file = [per_parameter(setting, "their file", FP32)] if setting.on_cpu else []  # in main memory
    return Phase("loading", (weights(setting), *file))


def training(setting: Setting) -> list[Phase]:
    """Return the phases of an optimizer step."""
    return [_loss(setting), _backward(setting), _update(setting)]


def _activations(setting: Setting) -> list[MemoryItem]:
    layers, checkpointing = setting.shape.layers, setting.checkpointing
    each = kept_by_checkpointing(setting) if checkpointing else kept_by_a_layer(setting)
    return [item_of("activations", [*each * layers, *kept_outside(setting)])]


def _logits(setting: Setting, copies: int) -> int:
    """Return bytes of so many copies of a piece of the logits, each of one byte a number."""
    return copies * min(setting.rows, ROWS_AT_A_TIME) * setting.shape.vocabulary


def _head_gradient(setting: Setting) -> MemoryItem:
    pieces = [setting.precision.weights * setting.shape.embedding]
    return item_of("gradient of the head", [] if setting.shape.adapter else pieces)


def _of_earlier_micro_batches(setting: Setting) -> list[MemoryItem]:
    """Return the gradients that a micro-batch finds; the optimizer's step leaves none."""
    sums, *buckets = gradients(setting)
    return [sums, *buckets] if setting.accumulate > 1 else buckets


def _loss(setting: Setting) -> Phase:
    """Return the end of the forward pass: the loss makes its gradients at once.

    In fp32 in one buffer of logits; under autocast from logits in half, in fp32 and their
    logarithms, and the head's gradient in half before it is added.
    """
    if setting.precision.mixed:
        half = setting.precision.products
        gradient = [_logits(setting, half), _logits(setting, FP32)]
        gradient += [] if setting.shape.adapter else [half * setting.shape.embedding]
        chunk = max(gradient, [_logits(setting, FP32)] * 2, key=sum)
        # autocast holds the copies of trained weights; the backward pass needs those of frozen ones
        kept = not (setting.shape.adapter and setting.checkpointing)
        loss = [*casts(setting, of_layers=kept, of_head=True), item_of("logits chunk", chunk)]
    else:
        loss = _chunk_in_one_type(setting)
    return Phase(
        "forward pass and loss",
        (
            weights(setting),
            *_of_earlier_micro_batches(setting),
            optimizer_state(setting),
            *gathered(setting),
            *_activations(setting),
            *loss,
            _head_gradient(setting),
        ),
    )


def _chunk_in_one_type(setting: Setting) -> list[MemoryItem]:
    wide = setting.precision.weights
    pieces = [_logits(setting, max(wide, FP32)), wide * setting.rows * setting.shape.width]
    if wide < FP32:  # sums are taken in fp32: copies of the head and of its gradient, and logits
        copies = 1 if setting.shape.adapter else 2
        pieces += [FP32 * setting.shape.embedding] * copies + [_logits(setting, FP32)]
    return [item_of("logits chunk", pieces)]


def _backward(setting: Setting) -> Phase:
    """Return the backward pass: gradients come while activations go, a block at a time.

    The last block's are still there when the first gradients are; where activations were not
    kept, one block's are made again.
    """
    items = [weights(setting), optimizer_state(setting), *gathered(setting)]
    items += _of_earlier_micro_batches(setting)
    items += _activations(setting)
    if setting.checkpointing:
        items.append(item_of("activations of a block", kept_by_a_layer(setting)))
    else:
        items += casts(setting, of_layers=True, of_head=False)
    items += dequantized(setting)
    items.append(item_of("gradients of hidden states", gradients_on_the_way(setting)))
    items.append(_head_gradient(setting))
    return Phase("backward pass", tuple(items))


def _update(setting: Setting) -> Phase:
    """Return the optimizer's step, and before it the embedding's gradient beside the head's."""
    items = [weights(setting), *gradients(setting), optimizer_state(setting)]
    if setting.precision.scaled:  # AdamW is not fused, and takes roots of all parameters at once
        items.append(per_parameter(setting, "temporaries of the optimizer", FP32, trained=True))
    elif setting.shape.tied:
        items.append(_head_gradient(setting))
    return Phase("last gradient and optimizer step", tuple(items))


def validation(setting: Setting) -> Phase:
    """Return a validation, which holds no gradients."""
    copies = FP32 + (FP32 + setting.precision.products if setting.precision.mixed else 0)
    return Phase(
        "validation",
        (
            weights(setting),
            optimizer_state(setting),
            *gathered(setting),
            *casts(setting, of_layers=not setting.shape.adapter, of_head=True),
            item_of("hidden states", gradients_on_the_way(setting)),
            item_of("logits chunk", [_logits(setting, copies)]),
        ),
    )


def writing(setting: Setting) -> list[Phase]:
    """Return what is held beside the run when its files are written, in a CPU's memory."""
    held = [weights(setting), optimizer_state(setting)]
    found = []
    count = setting.shape.parameters
    if setting.exports:
        models = MemoryItem("model of hf/, and as it is read back", 2 * FP32 * count)
        found.append(Phase("writing hf/", (*held, models)))
        found.append(Phase("writing the report", (*held, MemoryItem("curves and page", REPORT))))
    return found


def estimate_memory(setting: Setting) -> MemoryEstimate:
    """Add up what each device holds.

    Args:
        setting: The run.
    """
    phases = [loading(setting), *training(setting)]
    if setting.validates:
        phases.append(validation(setting))
    if not setting.on_cpu:
        context = MemoryItem("CUDA context and workspaces", CONTEXT)
        return MemoryEstimate(tuple(_with(phase, context) for phase in phases), 0)
    phases += writing(setting)
    libraries = MemoryItem("libraries, loaded when used", LIBRARIES)
    heap = _heap(setting)
    whole = [_with(phases[0], libraries)]
    for phase in phases[1:]:
        idle = MemoryItem("kept by the allocator", max(heap - _small(phase), 0))
        whole.append(_with(phase, libraries, *([idle] if idle.size else [])))
    return MemoryEstimate(tuple(whole), IMPORTS)


def _heap(setting: Setting) -> int:
    """Return what small pieces take of a process' memory, once it has trained for a while.

    What is freed in small pieces is never given back, and serves the next need but in part: where
    pieces come and go, half as much as they take lies in holes between them. That is Knuth's
    unused memory rule (The Art of Computer Programming, volume 1, section 2.5): a share of
    k / (k + 2) is unused where holes are k times as large as pieces. Here k is 1, since a hole of
    a piece's own size does not serve it: room for the alignment is sought beside it.
    """
    lasting = sum(item.small for item in (weights(setting), optimizer_state(setting)))
    most = max(_small(phase) for phase in training(setting))
    return most + (most - lasting) // 2


def _with(phase: Phase, *items: MemoryItem) -> Phase:
    return Phase(phase.name, (*phase.items, *items))


def _small(phase: Phase) -> int:
    return sum(item.small for item in phase.items)
