"""``export``: a folder in Hugging Face format, verified, with a model card."""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from gpt2_lightning.errors import UsageError
from gpt2_lightning.parser import Parser, summary
from gpt2_lightning.startup import heavy_imports
from gpt2_lightning.storage import disk_message

if TYPE_CHECKING:  # heavy imports wait until the words are known to be right
    from pathlib import Path

    from gpt2_lightning.export.model_card import Origin
    from gpt2_lightning.generate.text_model import TextModel

# packages that write a format, each of an extra of its name
WRITERS = {"gguf": ("gguf",), "onnx": ("onnx", "onnxscript", "onnxruntime")}

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # the form of the Hub's identifiers

LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def export(
    model: str,
    to: str,
    which: Literal["best", "last"] = "best",
    dtype: Literal["fp32", "bf16"] = "fp32",
    format: Literal["hf", "gguf", "onnx"] = "hf",
    card: str | None = None,
    license: str | None = None,
    language: str | None = None,
    push_to_hub: str | None = None,
    private: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
) -> None:
    """Write a model for other programs: safetensors, tokenizer, settings and a model card.

    The folder appears when what was written is read back and gives the same logits and ids.

    Args:
        model: Run folder such as lightning_logs/version_0, checkpoint (a .ckpt, or the folder of
            FSDP's sharded state), folder in Hugging Face format, or Hub id.
        to: The folder to write; one that holds anything else than an earlier export is refused.
        which: Checkpoint of a run folder: best (by --checkpoint.monitor of fit) or last.
        dtype: Type of the weights: fp32, or bf16 in half the size.
        format: hf is the folder alone; gguf puts a file for llama.cpp into it (of the folder's
            name), onnx one for ONNX Runtime (model.onnx).
        card: JSON that evaluate --output wrote, for the card's metrics; null takes card.json of the
            run folder, if there is one.
        license: Identifier from the Hub's list, such as apache-2.0; null leaves it to be filled in.
        language: ISO code of the text's language, such as en; null leaves it out.
        push_to_hub: Send the folder to this repository of the Hub, ORG/NAME.
        private: Whether a repository that is created there is private.
        overwrite: Replace an earlier export in the folder.
        revision: Branch, tag or commit of --model on the Hub.

    Raises:
        UsageError: If the model cannot be found or may not be written there.
    """
    for flag, value, form, example in (
        ("--license", license, LICENSE, "an identifier such as apache-2.0, mit or other"),
        ("--language", language, LANGUAGE, "a code such as en or zh"),
    ):
        if value is not None and not form.fullmatch(value.lower()):
            raise UsageError(f"{flag} {value}: give {example}.")

    if format == "onnx" and dtype == "bf16":
        raise UsageError("--dtype bf16: ONNX Runtime has few bf16 kernels. Leave the flag out.")
    if missing := [name for name in WRITERS.get(format, ()) if find_spec(name) is None]:
        raise UsageError(
            f"--format {format}: {' and '.join(missing)} not installed. "
            f'pip install "gpt2-lightning[{format}]" brings what it needs.'
        )
    with heavy_imports():
        from gpt2_lightning.export.hf_folder import (
            check_destination,
            export_folder,
            push,
            write_hf_folder,
            write_record,
        )
        from gpt2_lightning.export.model_card import find_origin
        from gpt2_lightning.export.single_file import write_gguf, write_onnx
        from gpt2_lightning.logs import quieten

    folder = export_folder(to, overwrite=overwrite)
    quieten()
    if push_to_hub is not None:
        check_destination(push_to_hub)
    origin = find_origin(model, which)
    loaded = _load(origin, revision, dtype)
    name = push_to_hub or folder.name
    labels = {"license": license and license.lower(), "language": language and language.lower()}
    readme = _readme(name, loaded, origin, card, dtype, labels)

    def finish(written: "Path") -> None:
        (written / "README.md").write_text(readme, encoding="utf-8")
        if format == "gguf":
            write_gguf(written / f"{folder.name}.gguf", loaded.model, loaded.tokenizer)
        elif format == "onnx":
            write_onnx(written / "model.onnx", loaded.model)
        write_record(written, {"dtype": dtype, "step": origin.step})
        export_folder(to, overwrite=overwrite)  # once more: something may have come there meanwhile

    try:
        write_hf_folder(folder, loaded.model, loaded.tokenizer, origin.sampling, finish)
    except OSError as error:
        raise UsageError(f"--to {disk_message(error, folder)}") from error
    _tell(folder, loaded, origin, license)
    if push_to_hub is not None:
        print(f"Pushed: {push(folder, push_to_hub, private=private)}")


def _load(origin: "Origin", revision: str | None, dtype: Literal["fp32", "bf16"]) -> "TextModel":
    from gpt2_lightning.generate.text_model import load_model
    from gpt2_lightning.model.gpt2 import place

    loaded = load_model(origin.weights, revision)
    if not all(parameter.isfinite().all() for parameter in loaded.model.parameters()):
        raise UsageError(
            f"--model {origin.weights}: it holds weights that are no numbers (NaN or infinite): "
            "the training diverged. Export an earlier checkpoint."
        )
    place(loaded.model, "cpu", dtype)
    return loaded


def _readme(
    name: str,
    loaded: "TextModel",
    origin: "Origin",
    card: str | None,
    dtype: str,
    labels: dict[str, str | None],
) -> str:
    from dataclasses import asdict
    from pathlib import Path

    from gpt2_lightning.evaluate.card import read_cards
    from gpt2_lightning.export.model_card import Exported, model_card
    from gpt2_lightning.model.gpt2 import count_parameters, positions_of

    parameters = count_parameters(loaded.model)
    file = None if card is None else Path(card).expanduser()
    if file is None and origin.run is not None and (origin.run / "card.json").is_file():
        file = origin.run / "card.json"
    cards = [] if file is None else [asdict(one) for one in read_cards(file, parameters)]
    exported = Exported(
        name=name,
        model_type=loaded.model.config.model_type,
        parameters=parameters,
        positions=positions_of(loaded.model),
        vocabulary=loaded.model.config.vocab_size,
        dtype=dtype,
        license=labels["license"],
        language=labels["language"],
    )
    return model_card(exported, origin, cards)


def _tell(folder: "Path", loaded: "TextModel", origin: "Origin", license: str | None) -> None:
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    at = "" if origin.step is None else f", step {origin.step:,}"
    print(f"Model: {origin.weights}{at}")
    print(
        f"Exported to {folder}: {size:,.1f} MB. Read back, it gives the same weights, logits and "
        "token ids."
    )
    if license is None:
        print("The model card needs a licence: --license ID, or fill it in at README.md.")


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    parser = Parser(prog="gpt2_lightning export", description=summary(export))
    parser.add_argument("--config", action="config", help="YAML file of these flags.")
    parser.add_function_arguments(export, as_group=False, skip={"overwrite"})
    parser.add_argument(
        "--overwrite",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Replace an earlier export in the folder.",
    )
    options = parser.parse_words(words)
    export(**options)
