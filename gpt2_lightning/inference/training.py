"""What is known of a model's training, as sections of its card."""

from typing import Any

from gpt2_lightning.inference.markdown import code, number, table
from gpt2_lightning.inference.origin import Origin, public_name


def data_section(origin: Origin) -> str:
    """Return what the model was trained on, and how it was cleaned and cut."""
    data = origin.settings.get("data") or {}
    if not data.get("source"):
        return "Nothing is known here of the text that this model was trained on."
    losses = {
        True: ", which loses no text",
        False: ", which loses text: figures on it are not comparable with published ones",
    }
    rows = [
        ("source", source_of(data)),
        ("cleaning", code(data.get("cleaning")) + losses.get(origin.fact("cleaning.lossless"), "")),
        ("blocks", f"{code(data.get('blocks'))}, {number(data.get('block_size'))} tokens each"),
    ]
    text = table(("", ""), rows)
    splits = origin.fact("data")
    if isinstance(splits, dict) and splits:
        columns = ("articles", "words", "bytes", "tokens", "targets")
        text += "\n\n" + table(
            ("split", *columns[:-1], "predicted tokens"),
            [(name, *(number(of.get(it)) for it in columns)) for name, of in splits.items()],
        )
    return text


def recipe_section(origin: Origin) -> str:
    """Return how the model was trained; nothing where it is not known."""
    if not origin.of_training:
        return ""
    setting, fact = origin.setting, origin.fact
    betas, seconds, seed = setting("model.betas"), fact("seconds"), setting("model.seed")
    dropout, clipping = setting("model.dropout"), setting("trainer.gradient_clip_val")
    warmup = number(setting("model.warmup_steps"))
    rows = {
        "began with": start_of(origin) or "random weights",
        "loss": "cross-entropy of the next token, over every target of a step",
        "optimizer steps": _steps(origin.step, fact("steps.schedule")),
        "blocks of a step": number(fact("steps.blocks")),
        "blocks of a micro-batch": number(setting("data.batch_size")),
        "tokens of a step": number(fact("steps.tokens")),
        "optimizer": f"AdamW, betas {betas[0]} and {betas[1]}" if betas else "AdamW",
        "peak learning rate": number(setting("model.learning_rate")),
        "schedule": f"{setting('model.schedule')}, {warmup or 0} steps of warm-up",
        "weight decay": f"{number(setting('model.weight_decay'))}, of matrices only",
        "gradient clipping": f"at norm {number(clipping)}" if clipping else "",
        "dropout": "the model's own" if dropout is None else number(dropout),
        "dropout of attention": number(setting("model.attention_dropout")),
        "precision": fact("trainer.precision") or setting("trainer.precision") or "",
        "seed": number(setting("seed_everything") if seed is None else seed),
        "processes": number(fact("trainer.processes")),
        "machine": _machine(fact("machine")),
        "time of the run": f"{seconds / 60:,.1f} minutes" if seconds else "",
        "versions": ", ".join(f"{name} {it}" for name, it in (fact("versions") or {}).items()),
    }
    return table(("", ""), rows.items())


def start_of(origin: Origin) -> str:
    """Return the model that training began with; nothing where there was none."""
    name, revision = origin.setting("model.pretrained"), origin.setting("model.revision")
    return code(public_name(name)) + _at(revision) if name else ""


def source_of(data: dict[str, Any]) -> str:
    """Return the text that settings name, without the folders it lay in."""
    if data["source"] == "builtin":
        return "`builtin`, Python's language reference as CPython carries it"
    subset = f" {code(data['subset'])}" if data.get("subset") else ""
    return code(public_name(data["source"])) + subset + _at(data.get("revision"))


def _at(revision: str | None) -> str:
    return f" at {code(revision)}" if revision else ""


def _steps(step: int | None, schedule: int | None) -> str:
    if step is None:
        return f"those of the best of {schedule:,}" if schedule else ""
    return f"{step:,}" + (f" of {schedule:,}" if schedule else "")


def _machine(machine: Any) -> str:
    if not isinstance(machine, dict):
        return ""
    cores = f"{machine.get('cores')} cores"
    return f"{machine.get('system')}, {', '.join(machine.get('gpus') or []) or cores}"
