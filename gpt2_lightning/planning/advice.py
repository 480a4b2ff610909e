"""What makes a run fit into its memory: which flag, and what the account becomes with it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpt2_lightning.planning.memory import account
from gpt2_lightning.planning.precision import precision_of
from gpt2_lightning.planning.setting import Setting

ROOM = 0.9  # share of the memory that may be planned for: accounts are right to about a tenth


@dataclass(frozen=True)
class Advice:
    """A change that leaves the training as it is, or nearly so.

    Attributes:
        flags: To add or to change.
        needed: Bytes that each device then needs.
        fits: Whether it has them.
    """

    flags: str
    needed: int
    fits: bool


def fits(needed: int, memory: int) -> bool:
    """Tell whether a device has what is needed, with room for what is not counted."""
    return needed <= ROOM * memory


def advice(setting: Setting) -> list[Advice]:
    """Return single changes, each with what it brings; where none is enough, several together.

    Args:
        setting: The run that does not fit.
    """
    memory = setting.place.memory
    assert memory is not None

    def with_flags(flags: str, changed: Setting) -> Advice:
        needed = account(changed).needed
        return Advice(flags, needed, fits(needed, memory))

    before = account(setting).needed
    single = [with_flags(flags, changed) for flags, changed in _changes(setting)]
    found = [it for it in single if it.needed < before]
    if any(it.fits for it in found):
        return found
    flags, changed = [], setting
    for change in ("checkpointing", "batch", "fsdp", "bf16"):
        step = next((it for it in _changes(changed, only=change)), None)
        if step is None or account(step[1]).needed >= account(changed).needed:
            continue
        flags.append(step[0])
        changed = step[1]
        if len(flags) > 1:
            together = with_flags(" ".join(flags), changed)
            found.append(together)
            if together.fits:
                break
    return found


def _changes(setting: Setting, only: str | None = None) -> Iterator[tuple[str, Setting]]:
    place, memory = setting.place, setting.place.memory
    assert memory is not None
    if only in (None, "checkpointing") and not setting.checkpointing:
        yield (
            "--model.gradient_checkpointing true",
            replace(setting, checkpointing=True),
        )
    if only in (None, "batch"):
        smaller = [
            setting.with_micro_batch(size)
            for size in range(setting.batch_size - 1, 0, -1)
            if (setting.batch_size * setting.accumulate) % size == 0
        ]
        enough = (it for it in smaller if fits(account(it).needed, memory))
        if smaller:
            chosen = next(enough, smaller[-1])  # the largest that fits, else the smallest
            yield (
                f"--data.batch_size {chosen.batch_size} "
                f"--trainer.accumulate_grad_batches {chosen.accumulate}",
                chosen,
            )
    if only in (None, "fsdp") and place.strategy == "ddp" and place.accelerator == "cuda":
        yield (
            "--config configs/scale/fsdp.yaml",
            replace(setting, place=place.with_strategy("fsdp")),
        )
    if only in (None, "bf16") and setting.precision.name == "32-true" and place.has_bf16:
        yield (
            "--trainer.precision bf16-mixed",
            replace(setting, precision=precision_of("bf16-mixed")),
        )
