"""Models and tokenizers that others made: the only place that lets transformers read them.

Nothing of a folder or repository is ever run, nothing is asked on standard input, and what a folder
is made of is looked at before it is loaded, so that every verb says what ``fetch --check`` says.
"""

import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    __version__,
)

from gpt2_lightning.errors import UsageError, one_line
from gpt2_lightning.untrusted import MOST_JSON, is_inside, leads_outside, parse_json, read_json

Shapes = dict[str, tuple[int, ...] | None]  # None: not known from the file

WHOLE, PICKLED, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"

ADAPTER = "adapter_config.json"

AGAIN = "Fetch it again with: python -m gpt2_lightning fetch model NAME --to DIR."

# of a folder, what is read; links elsewhere, such as of a README, hurt nobody
READ = {".json", ".txt", ".model", ".safetensors", ".jinja"}

MOST_SETTINGS = 1_000_000  # bytes of config.json; GPT-2's has 700

MOST_TOKENS = 10_000_000  # of tokenizer_config.json, which may list thousands of tokens

MOST_LAYERS = 1_000  # the deepest have some hundreds, and each takes time to build

MOST_HEADER = 100_000_000  # bytes of a safetensors header, as its format has it

USUAL_GAP = 128  # rows of an embedding without a token, or a tenth of them: they are rounded up


def load_config(name: str, revision: str | None = None, *, said: str) -> PreTrainedConfig:
    """Load a model's configuration.

    Args:
        name: Folder, or Hub id.
        revision: Branch, tag or commit on the Hub.
        said: The flag and the name by which it was asked for, for messages.

    Raises:
        UsageError: If it is damaged, of a kind that transformers does not know, or an adapter's.
        OSError: If it is not there.
    """
    folder = Path(name)
    if folder.is_dir():
        check_files(folder, said)
        _need_config(folder, said)
        settings = _json(folder / "config.json", said, MOST_SETTINGS)
    else:
        settings, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    check_settings(settings, said)
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        name, revision=revision, trust_remote_code=False
    )
    _check_causal(config, said)
    # transformers would fetch and run a kernel that config.json names
    if "/" in str(getattr(config, "_attn_implementation", None)):
        config._attn_implementation = None
    return config


def _check_causal(config: PreTrainedConfig, said: str) -> None:
    kind = type(config)
    # of a BERT, transformers makes a "causal" model that looks ahead, and only warns
    looks_ahead = (
        kind in MODEL_FOR_MASKED_LM_MAPPING
        and not config.is_encoder_decoder
        and not getattr(config, "is_decoder", False)
    )
    if looks_ahead or kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"{said}: config.json is of type {config.model_type}, which is no causal language "
            "model. Only GPT-2-like models are supported, such as openai-community/gpt2."
        )


def _need_config(folder: Path, said: str) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{said}: config.json is missing: it is no model, or not all of one. {AGAIN}"
        )


def check_settings(settings: Mapping[str, Any], said: str) -> None:
    """See that a model's settings are of a kind that transformers knows, and of a sane size.

    Args:
        settings: As config.json has them.
        said: Where they are from, for messages.

    Raises:
        UsageError: If they are not.
    """
    kind, own = settings.get("model_type"), "auto_map" in settings
    # one of 2019 names no type, which transformers then takes from the folder's name
    if kind not in CONFIG_MAPPING if kind is not None else own:
        code = " It brings Python code of its own, which is never run here." if own else ""
        raise UsageError(
            f"{said}: config.json is of type {kind}, which transformers {__version__} does not "
            f"know.{code} Give a GPT-2, such as openai-community/gpt2, or a model of its kind."
        )
    weights = settings.get("transformers_weights")
    if weights not in (None, WHOLE, WHOLE + INDEX):
        raise UsageError(f"{said}: config.json names {weights!r} as its weights; {WHOLE} is read.")
    for key in ("n_layer", "num_hidden_layers", "num_layers"):
        layers = settings.get(key)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise UsageError(f"{said}: config.json asks for {layers:,} layers ({key}).")


def load_weights(
    name: str, config: PreTrainedConfig, revision: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load a causal language model, from safetensors alone.

    Args:
        name: Folder, which `check_weights` has found whole, or Hub id.
        config: Its configuration.
        revision: Branch, tag or commit on the Hub.
        options: Further arguments of transformers' ``from_pretrained``.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        name,
        config=config,
        revision=revision,
        use_safetensors=True,  # a pickle can run code
        trust_remote_code=False,
        **options,
    )
    return model


def load_tokenizer_files(
    name: str, revision: str | None = None, *, said: str
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        name: Folder, or Hub id.
        revision: Branch, tag or commit on the Hub.
        said: The flag and the name by which it was asked for, for messages.

    Raises:
        UsageError: If a file of the folder is too large, or leads out of it.
        Exception: Whatever transformers raises where there is no tokenizer.
    """
    config = None
    if Path(name).is_dir():
        check_files(Path(name), said)
        _check_own_code(Path(name), said)
    else:  # where the Hub is out of reach, AutoTokenizer asks it twice
        with suppress(ValueError):  # of a type that transformers does not know
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        name, revision=revision, config=config, trust_remote_code=False
    )
    return tokenizer


def _check_own_code(folder: Path, said: str) -> None:
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    settings = _json(folder / "tokenizer_config.json", said)
    kind = _json(folder / "config.json", said, MOST_SETTINGS).get("model_type")
    named = str(settings.get("tokenizer_class"))
    known = kind in CONFIG_MAPPING or tokenizer_class_from_name(named.removesuffix("Fast"))
    if "auto_map" in settings and not known:
        raise UsageError(
            f"{said}: its tokenizer ({named}) brings Python code of its own, which is never run "
            "here. Give the tokenizer of a GPT-2, such as openai-community/gpt2."
        )


# --- what a folder is made of ---------------------------------------------------------------------


def check_files(folder: Path, said: str) -> None:
    """See that no file of a model folder leads out of it, or is larger than one can be.

    Args:
        folder: The folder.
        said: The flag and the name by which it was asked for, for messages.

    Raises:
        UsageError: If one is.
    """
    if (folder / ADAPTER).is_file():
        base = _json(folder / ADAPTER, said, MOST_SETTINGS).get("base_model_name_or_path")
        raise UsageError(
            f"{said}: {ADAPTER} says that it is an adapter (LoRA) of {base}. Put the two together "
            "first (merge_and_unload of peft, then save_pretrained), and give that folder."
        )
    for file in sorted(folder.iterdir()):
        if file.suffix not in READ or not file.exists():
            continue
        if leads_outside(folder, file):
            raise UsageError(
                f"{said}: {file.name} is a link that leads out of the folder, to {file.resolve()}. "
                "Copy the content there (cp -L), or give the folder that holds it."
            )
        if not file.is_file():
            raise UsageError(f"{said}: {file.name} is no regular file. {AGAIN}")
        if file.suffix != ".safetensors":
            small = file.name.endswith("config.json") or file.suffix == ".jinja"
            most = MOST_SETTINGS if small else MOST_JSON
            _check_size(file, said, MOST_TOKENS if file.name == "tokenizer_config.json" else most)
    names = _json(folder / "tokenizer_config.json", said).get("fast_tokenizer_files")
    for name in names if isinstance(names, list) else []:
        _check_inside(folder, "tokenizer_config.json", name, said)


def _check_size(file: Path, said: str, most: int) -> None:
    if (size := file.stat().st_size) > most:
        raise UsageError(
            f"{said}: {file.name} has {size:,} bytes; {most:,} are the most that are read. It is "
            f"damaged, or something else under its name. {AGAIN}"
        )


def _json(file: Path, said: str, most: int | None = None) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = read_json(file) if most is None else read_json(file, most)
    except ValueError as error:
        raise UsageError(
            f"{said}: {file.name} cannot be read ({error}): it is damaged, or a page of a web site "
            f"was saved in its place. {AGAIN}"
        ) from error
    return found if isinstance(found, dict) else {}


def _check_inside(folder: Path, file: str, name: Any, said: str) -> None:
    if not isinstance(name, str) or not is_inside(folder, name):
        raise UsageError(
            f"{said}: {file} names {name!r}, which is no file of the folder. Nothing was read from "
            f"there. {AGAIN}"
        )


# --- whether its weights are whole, and belong to its configuration -------------------------------


def weight_files(folder: Path, said: str) -> list[Path]:
    """Return a folder's files of weights.

    Raises:
        UsageError: If one is missing, is only there as a pickle, or would lie outside the folder.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    index = folder / (WHOLE + INDEX)
    if index.is_file():
        names = listed_shards(folder, index, said)
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UsageError(
                f"{said}: {', '.join(missing[:3])} is missing; {index.name} lists {len(names)} "
                f"files of weights. {AGAIN}"
            )
        return [folder / name for name in names]
    if (folder / PICKLED).is_file() or (folder / (PICKLED + INDEX)).is_file():
        raise UsageError(
            f"{said}: the weights are there only as {PICKLED}, a pickle, which can run code when "
            f"it is read. Fetch the model anew: python -m gpt2_lightning fetch model NAME --to DIR "
            f"takes {WHOLE}, or turns the pickle into it with --allow_pickle."
        )
    raise UsageError(f"{said}: {WHOLE} is missing. {AGAIN}")


def listed_shards(folder: Path, index: Path, said: str) -> list[str]:
    """Return the names that a shard list has, each once.

    Raises:
        UsageError: If the list is damaged, or one leads out of the folder.
    """
    listed = _json(index, said).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UsageError(f"{said}: {index.name} lists no files of weights: it is damaged. {AGAIN}")
    names: Iterable[Any] = dict.fromkeys(map(str, listed.values()))
    for name in names:
        _check_inside(folder, index.name, name, said)
    return sorted(names)


def check_weights(folder: Path, said: str) -> PreTrainedModel:
    """See that a folder's weights are whole and those of its config.json; no weight is read.

    Args:
        folder: The folder.
        said: The flag and the name by which it was asked for, for messages.

    Returns:
        The model, its weights on torch's meta device.

    Raises:
        UsageError: If something is missing, cut short, damaged, or does not fit the rest.
    """
    check_files(folder, said)
    _need_config(folder, said)
    shapes: Shapes = {}
    for file in weight_files(folder, said):
        shapes |= _shapes_of(file, said)
    model = empty_model(str(folder), said)
    shapes = _as_loaded(shapes, model)
    wanted = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{model.base_model_prefix}."
    found = {name if name in wanted else prefix + name: shape for name, shape in shapes.items()}
    there = {id(wanted[name]) for name in found if name in wanted}  # tied weights are stored once
    missing = [name for name, value in wanted.items() if id(value) not in there]
    other = [
        name for name, value in wanted.items() if found.get(name) not in (None, tuple(value.shape))
    ]
    if missing or other:
        name = (missing or other)[0]
        how = "lack" if missing else "have another shape of"
        raise UsageError(
            f"{said}: the weights {how} {name}: they belong to another config.json. {AGAIN}"
        )
    return model


def empty_model(name: str, said: str) -> PreTrainedModel:
    """Build the model that a folder's config.json describes, of shapes alone."""
    import torch

    try:
        config = load_config(name, said=said)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False
            )
            return model
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{said}: config.json describes no causal language model ({one_line(error)})."
        ) from error


def _shapes_of(file: Path, said: str) -> Shapes:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 # no dict
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        whole = _length(file)
        how = (
            f"is cut short: {size:,} of {whole:,} bytes"
            if whole is not None and whole > size
            else f"is damaged ({one_line(error)})"
        )
        raise UsageError(f"{said}: {file.name} {how}. {AGAIN}") from error


def _as_loaded(shapes: Shapes, model: PreTrainedModel) -> Shapes:
    """Name weights as transformers does when it loads them: GPT-NeoX stores its head as embed_out.

    Args:
        shapes: By the names in the files.
        model: The model that they are of.

    Returns:
        The shapes by the model's names; None where several weights are merged to one, as Mixtral's
        experts are.
    """
    # no public name says so; peft calls it as well, and so it stays as it is
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    for rule in get_model_conversion_mapping(model):
        renamed = {name: rule.rename_source_key(name)[0] for name in shapes}
        merges = isinstance(rule, WeightConverter)
        shapes = {
            new: None if merges and new != old else shapes[old] for old, new in renamed.items()
        }
    return shapes


def _length(file: Path) -> int | None:
    """Return how long a file's own header says that it is, in bytes; None if that is damaged too.

    The format: 8 bytes of the header's length, the header, the tensors
    (https://huggingface.co/docs/safetensors).
    """
    with suppress(ValueError, KeyError, TypeError, AttributeError, struct.error):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MOST_HEADER:
                return None
            header = parse_json(stream.read(length).decode())
        ends = [it["data_offsets"][1] for name, it in header.items() if name != "__metadata__"]
        return 8 + int(length) + max(ends, default=0)
    return None


# --- whether its tokenizer is its own -------------------------------------------------------------


def what_tokenizer_lacks(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> str | None:
    """Say why a tokenizer looks as if it belonged to another model, if it does.

    A vocabulary may have more rows than the tokenizer has tokens: they are rounded up (GPT-NeoX has
    50,432 for 50,277), and one from scratch is trained on too little text to fill them. Then the
    end-of-text is the same in both.

    Args:
        tokenizer: The tokenizer.
        config: The model's configuration, as it was loaded.

    Returns:
        What was found, without a stop at its end; None where nothing is unusual.
    """
    tokens, rows = len(tokenizer), int(config.vocab_size)
    end = config.eos_token_id
    same_end = tokenizer.eos_token_id in (end if isinstance(end, list) else [end])
    if rows - tokens <= max(USUAL_GAP, rows // 10) or same_end:
        return None
    return (
        f"the tokenizer has {tokens:,} tokens and the model {rows:,}, with its end-of-text at "
        f"{end}: it looks like another model's, and then the model reads nonsense"
    )
