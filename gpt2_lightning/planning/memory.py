"""The memory of a run: its moments, and what else its process takes of the device."""

from gpt2_lightning.planning.account import Account, Moment, Term
from gpt2_lightning.planning.holdings import optimizer_state, weights
from gpt2_lightning.planning.moments import loading, training, validation, writing
from gpt2_lightning.planning.setting import Setting

# What is loaded when it is first used: the model's code, TensorBoard, tokenizer and data files,
# math libraries. Measured as the peak of a run whose model is next to nothing (one layer of 8).
LIBRARIES = 110_000_000
# Python and the libraries at their import; part of a CPU's memory, not of the peak above it.
IMPORTS = 470_000_000
# A GPU's: the CUDA context and the workspaces of its math library. Not measured here.
CONTEXT = 600_000_000


def account(setting: Setting) -> Account:
    """Add up what each device holds.

    Args:
        setting: The run.
    """
    moments = [loading(setting), *training(setting)]
    if setting.validates:
        moments.append(validation(setting))
    if not setting.on_cpu:
        context = Term("CUDA context and workspaces", CONTEXT)
        return Account(tuple(_with(moment, context) for moment in moments), 0)
    moments += writing(setting)
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
    lasting = sum(term.small for term in (weights(setting), optimizer_state(setting)))
    most = max(_small(moment) for moment in training(setting))
    return most + (most - lasting) // 2


def _with(moment: Moment, *terms: Term) -> Moment:
    return Moment(moment.name, (*moment.terms, *terms))


def _small(moment: Moment) -> int:
    return sum(term.small for term in moment.terms)
