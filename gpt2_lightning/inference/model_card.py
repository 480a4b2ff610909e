"""The model card: README.md of an exported folder, in the Hub's format."""

import json
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gpt2_lightning.inference.card_file import FIGURES
from gpt2_lightning.inference.checkpoint import extreme_of
from gpt2_lightning.inference.markdown import code, number, table
from gpt2_lightning.inference.origin import Origin, hub_id, public_name
from gpt2_lightning.inference.training import (
    data_section,
    recipe_section,
    source_of,
    start_of,
)

LICENCE_MISSING = (
    "Not stated yet. The author of this model has to fill it in: `license` at the top of this "
    "file, and this line. The licences of the base model and of the training text have a say in it."
)
VALIDATION = {
    "val/perplexity": "token perplexity",
    "val/loss": "nats per token",
    "val/bits_per_byte": "bits per byte",
}


@dataclass(frozen=True)
class Exported:
    """What is told of a model beside its origin.

    Attributes:
        name: Of the folder, or of the repository where it goes.
        model_type: Of its configuration.
        parameters: Tied ones counted once.
        positions: Longest context in tokens.
        vocabulary: Tokens.
        dtype: Of the weights.
        license: SPDX-like identifier of the Hub's list.
        language: ISO code.
    """

    name: str
    model_type: str
    parameters: int
    positions: int
    vocabulary: int
    dtype: str
    license: str | None
    language: str | None


def model_card(model: Exported, origin: Origin, cards: list[dict[str, Any]]) -> str:
    """Return a model card: the Hub's metadata, then what a reader has to know.

    Args:
        model: What was exported.
        origin: Where it comes from.
        cards: Of ``evaluate``, as its JSON has them.

    Returns:
        The text of README.md. It names no folder of this machine.

    Reference:
        https://huggingface.co/docs/hub/model-cards
    """
    sections = {
        "": _what_it_is(model, origin),
        "Use": _use(model),
        "Data": data_section(origin),
        "Recipe": recipe_section(origin),
        "Metrics": _metrics(origin, cards),
        "Intended use and limits": _limits(model, origin),
        "Licence": model.license or LICENCE_MISSING,
    }
    text = "\n\n".join(
        f"## {title}\n\n{body}" if title else body for title, body in sections.items() if body
    )
    return f"---\n{_metadata(model, origin, cards)}\n---\n\n# {model.name}\n\n{text}\n"


def _metadata(model: Exported, origin: Origin, cards: list[dict[str, Any]]) -> str:
    source = hub_id(origin.setting("data.source"))
    base = hub_id(origin.setting("model.pretrained"))
    if not origin.of_training:  # a model of the Hub, exported again
        base = hub_id(origin.weights)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=public_name(card["source"]),
            dataset_name=card.get("text") or public_name(card["source"]),
            dataset_config=card.get("subset"),
            dataset_split=card["split"],
            metric_type=FIGURES[name].replace(" ", "_"),
            metric_name=f"{FIGURES[name]} ({_protocol(card)})",
            metric_value=round(card[name], 4),
        )
        for card in cards
        for name in FIGURES
        if card.get(name) is not None
    ]
    data = ModelCardData(
        language=model.language,
        license=model.license or "other",
        license_name=None if model.license else "to-be-filled-in",
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base,
        datasets=[source] if source else None,
        tags=["gpt2_lightning", model.model_type],
        model_name=model.name.rpartition("/")[2],
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _what_it_is(model: Exported, origin: Origin) -> str:
    data, start = origin.settings.get("data") or {}, start_of(origin)
    trained = ""
    if data.get("source"):
        begun = f"fine-tuned from {start}" if start else "trained from scratch"
        trained = f", {begun} on {source_of(data)}"
    return (
        f"A causal language model of type {model.model_type}{trained}: {model.parameters:,} "
        f"parameters (tied ones counted once), {model.dtype}, {model.positions:,} positions, a "
        f"vocabulary of {model.vocabulary:,} tokens."
    )


def _use(model: Exported) -> str:
    return f"""```python
from transformers import pipeline

writer = pipeline("text-generation", model={json.dumps(model.name, ensure_ascii=False)})
print(writer("Once upon a time", max_new_tokens=50)[0]["generated_text"])
```

Plain `AutoModelForCausalLM` and `AutoTokenizer` load it; prompt and answer together have room for \
{model.positions:,} tokens."""


def _metrics(origin: Origin, cards: list[dict[str, Any]]) -> str:
    parts = [_of_evaluation(card) for card in cards]
    rows = [
        (label, f"{origin.figures[name]:,.4f}")
        for name, label in VALIDATION.items()
        if origin.figures.get(name) is not None
    ]
    chosen = ""
    if origin.chosen:
        chosen = (
            f"The checkpoint is that of the {code(extreme_of(origin.chosen))} of all validations, "
            f"{origin.chosen['value']:,.4f}. "
        )
    if rows:
        parts.append(
            "The run's own validation, at this model's step or the last before it, on the blocks "
            f"of training ({code(origin.setting('data.blocks'))}, "
            f"{number(origin.setting('data.block_size'))} tokens, cleaning "
            f"{code(origin.setting('data.cleaning'))}). {chosen}It says nothing beside figures of "
            "another protocol.\n\n" + table(("", "validation split"), rows)
        )
    return "\n\n".join(parts) or "Nothing was measured."


def _of_evaluation(card: dict[str, Any]) -> str:
    intervals = card.get("intervals") or {}
    rows = []
    for name, label in FIGURES.items():
        if card.get(name) is not None:
            ends = intervals.get(name)
            sure = (
                f" (95 % of resampled articles: {ends[0]:,.4f} to {ends[1]:,.4f})" if ends else ""
            )
            rows.append((label, f"{card[name]:,.4f}{sure}"))
    text = f", {card['text']}" if card.get("text") else ""
    labels = [
        ("text", f"{source_of(card)}, {card['split']} split{text}"),
        ("sha256", code(card["sha256"])),
        ("reading", f"{card['reading']}; cleaning: {card['cleaning']}"),
        ("protocol", _protocol(card)),
        ("first token", card["first_token"]),
        ("predicted", f"{card['tokens_predicted']:,} of {card['tokens']:,} tokens"),
        ("words and bytes", f"{card['words']:,} by {card['words_rule']}; {card['bytes']:,}"),
        ("weights", card["dtype"]),
    ]
    return table(("", ""), rows + labels) + f"\n\n{card['comparable']}"


def _protocol(card: dict[str, Any]) -> str:
    stride = "" if card.get("stride") is None else f", stride {card['stride']:,}"
    return f"{card['protocol']}, context {card['context']:,}{stride}"


def _limits(model: Exported, origin: Origin) -> str:
    start = start_of(origin)
    inherited = f", and those of {start}," if start else ""
    return (
        "For continuing text of the kind that it was trained on, for study, and for further "
        "training. It is a base model: it continues a text and neither answers questions nor "
        "follows instructions. What it writes may be false, and may repeat its training text word "
        f"for word; the leanings of that text{inherited} are its own. Nothing filters its output. "
        f"Beyond {model.positions:,} tokens it sees nothing. Decide nothing about people with it."
    )
