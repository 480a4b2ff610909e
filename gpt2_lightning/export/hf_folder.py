"""A folder in Hugging Face format: where it may be written, written, verified, sent to the Hub."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gpt2_lightning import __version__
from gpt2_lightning.data.sources import HUB_ID
from gpt2_lightning.data.tokenizer import keeps_every_byte, set_model_max_length
from gpt2_lightning.errors import UsageError
from gpt2_lightning.model.gpt2 import positions_of
from gpt2_lightning.model.sampling import SamplingOptions
from gpt2_lightning.pretrained import load_config, load_tokenizer_files, load_weights
from gpt2_lightning.storage import whole_folder
from gpt2_lightning.untrusted import misfit, read_json

RECORD = "export.json"

AUTHOR = "gpt2_lightning export"


# what a tokenizer may stumble over: spaces, line ends, marks, several scripts, characters of
# several code points, and the end-of-text itself
DRAWING = ("temperature", "top_k", "top_p", "min_p", "typical_p")  # options of sampling
TEXTS = (
    "The river, they said, had risen twice.",
    " leading  and trailing \n\n\tspaces @-@ and 1,024 figures \n",
    "naïve café — “quoted”, 你好，世界。 Привет مرحبا",
    "👩‍🚀🇨🇭 e\u0301 \u200b don't",
    "one<|endoftext|>two",
)
FLAG = "--push_to_hub"


def export_folder(name: str, *, overwrite: bool) -> Path:
    """Return the folder that ``--to`` names, if nothing of the user's would be lost there.

    An earlier export carries a record of its files. It may be replaced while it holds them as
    they were written, and no others.

    Args:
        name: The folder.
        overwrite: Replace an earlier export.

    Raises:
        UsageError: If it may not be written.
    """
    folder = Path(name).expanduser().resolve()
    if Path.cwd().is_relative_to(folder):  # a shell would be left in a folder that is gone
        raise UsageError(f"--to {name}: it is the folder you are in. Give one in it.")
    if not folder.exists():
        above = next(parent for parent in folder.parents if parent.exists())
        if not above.is_dir():
            raise UsageError(f"--to {name}: {above} is a file. Choose another folder.")
        return folder
    if not folder.is_dir():
        raise UsageError(f"--to {name}: it is a file. Give a folder that is not there yet.")
    if not any(folder.iterdir()):
        return folder
    record = _record(folder)
    if record is None:
        raise UsageError(
            f"--to {name}: it holds files that no export wrote. Give a folder that is not there "
            "yet."
        )
    if not overwrite:
        raise UsageError(
            f"--to {name}: an earlier export is there. Add --overwrite true to replace it, or give "
            "a folder that is not there yet."
        )
    if theirs := _not_of(folder, record):
        raise UsageError(
            f"--to {name}: since its export {', '.join(theirs[:3])}"
            f"{f' and {len(theirs) - 3} more' if len(theirs) > 3 else ''} came or changed, and "
            "would be lost. Move that away, or give a folder that is not there yet."
        )
    return folder


def write_record(folder: Path, about: dict[str, Any]) -> None:
    """Write, as the last file, what wrote the folder and the SHA-256 of every other file.

    Args:
        folder: The folder.
        about: What else to tell, in plain values.
    """
    files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    record = {"written_by": AUTHOR, "version": __version__, **about, "sha256": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _record(folder: Path) -> dict[str, str] | None:
    """Return an earlier export's files and their hashes; None if the folder is no export."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("written_by") != AUTHOR:
        return None
    files = record.get("sha256")
    return files if isinstance(files, dict) and misfit(files, {"*": str}) is None else None


def _not_of(folder: Path, record: dict[str, str]) -> list[str]:
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name != RECORD
        and (not entry.is_file() or _sha256(entry) != record.get(entry.name))
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_hf_folder(
    target: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingOptions | None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write model, tokenizer and generation settings; the folder appears when it is verified.

    Args:
        target: The folder; one that is there is replaced.
        model: A model on the CPU; the folder has its weights in its type.
        tokenizer: Its tokenizer.
        sampling: Becomes the folder's ``generation_config.json``; null keeps the model's own, with
            the tokenizer's ends.
        finish: Is given the verified folder, to add to it, just before it takes its place.

    Raises:
        RuntimeError: If the written model or tokenizer does not give what the given one does.
    """
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ends)
    if model.config.model_type == "gpt2":
        # transformers has dropped it, and llama.cpp's converter looks for no other
        model.config.update({"n_ctx": positions_of(model)})
    if sampling is None:
        model.generation_config = _kept(model.generation_config, ends)
    else:
        model.generation_config = _generation_config(sampling, ends)
    set_model_max_length(tokenizer, positions_of(model))
    with whole_folder(target, replace=True) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():  # safetensors keeps the weights from every other user
            file.chmod((folder / "config.json").stat().st_mode)
        _verify_model(folder, model)
        _verify_tokenizer(folder, tokenizer)
        if finish is not None:
            finish(folder)


def _generation_config(sampling: SamplingOptions, ends: dict[str, int | None]) -> GenerationConfig:
    """Return the options for transformers; of those that are rarely set, the ones that are.

    Stop strings are left out: with them its `generate` refuses to run without a tokenizer.
    """
    names = ["max_new_tokens", "do_sample"]
    rare = ["min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "num_beams"]
    if sampling.do_sample:
        names += ["temperature", "top_k", "top_p"]
        rare += ["min_p", "typical_p"]
    default = SamplingOptions()
    names += [name for name in rare if getattr(sampling, name) != getattr(default, name)]
    return GenerationConfig(**ends, **{name: getattr(sampling, name) for name in names})


def _kept(given: GenerationConfig, ends: dict[str, int | None]) -> GenerationConfig:
    """Return a model's own options, but for those that transformers would refuse to write."""
    if not given.do_sample:
        given.update(**dict.fromkeys(DRAWING))  # they mean nothing without it
    given.update(**ends)
    try:
        given.validate(strict=True)
    except ValueError:
        return GenerationConfig(**ends)
    return given


@torch.inference_mode()
def _verify_model(folder: Path, model: PreTrainedModel) -> None:
    config = load_config(str(folder), said=str(folder))
    written = load_weights(str(folder), config).eval()
    ids = torch.arange(min(16, positions_of(model))).unsqueeze(0) % model.config.vocab_size
    was_training = model.training
    logits = model.eval()(ids).logits
    model.train(was_training)
    if not torch.equal(logits, written(ids).logits):
        raise RuntimeError(f"{folder}: the written model's logits differ from the model's")
    weights = written.state_dict()
    for name, value in model.state_dict().items():  # more than a few ids and positions touch
        if not torch.equal(value, weights[name]):
            raise RuntimeError(f"{folder}: the written {name} differs from the model's")
    head, embedding = written.get_output_embeddings(), written.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embedding.weight:
        raise RuntimeError(f"{folder}: the written model's head is not tied to its embedding")


def _verify_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    written = load_tokenizer_files(str(folder), said=str(folder))
    if written.eos_token_id != tokenizer.eos_token_id:
        raise RuntimeError(f"{folder}: the written tokenizer ends texts with another token")
    lossless = keeps_every_byte(tokenizer)
    for text in TEXTS:
        # not verbose: a model of few positions has room for none of them
        ids = tokenizer(text, verbose=False)["input_ids"]
        back = written.decode(ids, clean_up_tokenization_spaces=False)
        # some put a space before every text
        if written(text, verbose=False)["input_ids"] != ids or (
            lossless and back not in (text, f" {text}")
        ):
            raise RuntimeError(f"{folder}: the written tokenizer reads {text!r} otherwise")


def check_destination(repository: str) -> None:
    """See, before any work, that a repository can be written to at all.

    Raises:
        UsageError: If the name is none, the Hub's client is offline, or there is no token.
    """
    if not HUB_ID.fullmatch(repository):
        raise UsageError(
            f"{FLAG} {repository}: it is no name of a repository. Give ORG/NAME, such as "
            "my-name/gpt2-of-mine."
        )
    if is_offline_mode():
        raise UsageError(
            f"{FLAG} {repository}: HF_HUB_OFFLINE keeps everything off the network. Unset it, and "
            "log in with `hf auth login`."
        )
    if get_token() is None:
        raise UsageError(
            f"{FLAG} {repository}: you are not logged in. `hf auth login` asks for a token with "
            "write access; or set HF_TOKEN."
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Create a repository, unless it is there, and send a folder to it in one commit.

    Args:
        folder: The folder; its record of the export stays here.
        repository: ``ORG/NAME``.
        private: Whether a new repository is.

    Returns:
        Where it is.

    Raises:
        UsageError: If the Hub cannot be reached or refuses.
    """
    api = HfApi()
    try:
        where = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=[RECORD],
            commit_message="Export of gpt2_lightning",
        )
    except Exception as error:  # whatever its HTTP client, which is no business of ours, raises
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = {
            401: "the Hub does not accept the token",
            403: "the token may not write there",
        }.get(status or 0, "the Hub could not be reached or refused")
        raise UsageError(
            f"{FLAG} {repository}: {reason} ({' '.join(str(error).split())[:200]}). The folder "
            f"{folder} is complete. `hf auth login` with a token that may write there, then "
            f"`hf upload {repository} {folder} --exclude {RECORD}`."
        ) from error
    return str(where)
