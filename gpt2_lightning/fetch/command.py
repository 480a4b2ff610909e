"""``fetch``: download a model or data from the Hub, a mirror or ModelScope; or check a folder."""

import sys
from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING, Literal

from gpt2_lightning.errors import UsageError
from gpt2_lightning.parser import Parser, with_underscores

if TYPE_CHECKING:  # heavy imports wait until the words are known to be right
    from pathlib import Path

    from gpt2_lightning.fetch.check import Finding
    from gpt2_lightning.fetch.download import Manifest
    from gpt2_lightning.fetch.hubs import Listing, RemoteFile, RepoRef

KINDS = ("model", "data")

USAGE = """gpt2_lightning fetch model|data NAME --to DIR [flags]
       gpt2_lightning fetch --check DIR"""


def fetch(
    kind: Literal["model", "data"],
    name: str,
    to: str,
    hub: Literal["hub", "modelscope"] = "hub",
    endpoint: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    everything: bool = False,
    allow_pickle: bool = False,
    timeout: float = 20.0,
) -> None:
    """Download a model or data into a folder, which appears when all of its files are verified.

    The files of an interrupted transfer are kept beside the folder, and the same call resumes it.
    If the folder already exists, the network is not used.

    Args:
        kind: ``model`` or ``data``.
        name: ORG/NAME in the hub.
        to: The folder to create.
        hub: The Hugging Face Hub, or ModelScope.
        endpoint: Address of a mirror; null is HF_ENDPOINT (MODELSCOPE_ENDPOINT), or the hub's own.
        revision: Branch, tag or commit; null is the main branch.
        subset: Folder of the data; null is the only one. It may be added to a fetched folder that
            has others.
        everything: Download all files, needed or not.
        allow_pickle: Accept weights that exist only as a pickle, and convert them to safetensors.
        timeout: Seconds without a connection or a byte after which a transfer has stalled.

    Raises:
        UsageError: If it cannot be downloaded, or is not what the hub lists.
    """
    from gpt2_lightning.fetch.download import already_there, fetch_folder, target_folder
    from gpt2_lightning.fetch.hubs import repo_ref

    if subset is not None and kind == "model":
        raise UsageError("--subset: a model has no subsets. Leave it out, or fetch data.")
    if allow_pickle and kind == "data":
        raise UsageError("--allow_pickle: data is never read from a pickle. Leave it out.")
    repo = repo_ref(kind, name, hub, revision, endpoint, timeout)
    folder = target_folder(to)
    subset = subset.strip("/") if subset else None
    earlier = already_there(folder, repo, subset, everything=everything)
    if earlier is not None and not earlier.lacks(subset):
        print(
            f"{to} already exists, with all its files: {repo.kind} {repo.name} at "
            f"{earlier.commit}. Nothing was fetched; to fetch it again, move the folder away."
        )
        _tell(to, earlier, subset)
        return
    if earlier is not None:  # another subset, of the same commit
        repo = replace(repo, revision=earlier.commit)

    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise UsageError(
            f"fetch {repo.label}: {to} does not exist yet, and HF_HUB_OFFLINE forbids downloads. "
            "Unset it, or run fetch on a machine with a network and copy the folder."
        )
    pickled = False

    def choose(listing: "Listing") -> "list[RemoteFile]":
        from gpt2_lightning.fetch.wanted import data_files, model_files

        nonlocal pickled
        if kind == "data":
            return data_files(listing, subset, everything=everything)
        files, pickled = model_files(listing, everything=everything, allow_pickle=allow_pickle)
        return files

    def finish(folder: "Path") -> None:
        if pickled:
            from gpt2_lightning.fetch.pickle_weights import convert

            print("Converting the pickled weights to safetensors.", file=sys.stderr)
            convert(folder)

    try:
        manifest = fetch_folder(
            folder,
            repo,
            subset,
            everything=everything,
            choose=choose,
            finish=finish,
            # the converted weights are beside the pickle for a moment
            extra=lambda files: sum(file.size or 0 for file in files) if pickled else 0,
            earlier=earlier,
        )
    except KeyboardInterrupt:
        print("Stopped. The same command resumes from here.", file=sys.stderr)
        raise
    _tell_fetched(to, folder, repo, manifest)
    _tell(to, manifest, subset)


def _tell_fetched(to: str, folder: "Path", repo: "RepoRef", manifest: "Manifest") -> None:
    from gpt2_lightning.fetch.check import check_folder
    from gpt2_lightning.fetch.transfer import megabytes

    print(
        f"Fetched {repo.kind} {repo.name} at {manifest.commit} into {to}: {len(manifest.size)} "
        f"files, {megabytes(sum(manifest.size.values()))}, sizes and hashes as {repo.where} lists "
        "them."
    )
    try:
        finding = check_folder(str(folder))
    except UsageError as error:
        raise UsageError(
            f"it was fetched as the hub has it, but cannot be used: {error}"
        ) from error
    _show(finding, lines=finding.lines[1:])


def _show(finding: "Finding", lines: list[str]) -> None:
    print("\n".join(lines))
    for warning in finding.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _tell(to: str, manifest: "Manifest", subset: str | None) -> None:
    """Print the command to type next."""
    place = quote(to)
    if manifest.kind == "model":
        words = f"--model.pretrained {place} --data.source my_book.txt"
    else:
        named = subset or next(iter(manifest.subsets), None)
        words = f"--model.pretrained openai-community/gpt2 --data.source {place}"
        words += f" --data.subset {quote(named)}" if named else ""
    print(
        f"Next, without network for {to} (HF_HUB_OFFLINE=1 enforces that):\n"
        f"  python -m gpt2_lightning fit --config finetune {words}"
    )


def check(folder: str) -> None:
    """Print what a folder is, whether it is complete, and which flags use it.

    Args:
        folder: A model or data, obtained by any means.

    Raises:
        UsageError: If it cannot be used.
    """
    from gpt2_lightning.fetch.check import check_folder

    finding = check_folder(folder)
    _show(finding, finding.lines)
    print("Use it with:")
    print("\n".join(f"  {flags}" for flags in finding.flags))


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    parser = Parser(
        prog="gpt2_lightning fetch",
        usage=USAGE,
        description="Download a model or data into a folder, which appears when all of its files "
        "are verified. An interrupted transfer is kept, and the same command resumes it.",
    )
    parser.add_argument("kind", nargs="?", type=str, metavar="model|data", help="What to download.")
    parser.add_argument("name", nargs="?", type=str, help="Its name in the hub, ORG/NAME.")
    parser.add_argument("--to", type=str, metavar="DIR", help="The folder to create.")
    parser.add_argument(
        "--check",
        type=str,
        metavar="DIR",
        help="Download nothing; say what a folder is, whether it is complete, and which flags use "
        "it.",
    )
    parser.add_argument(
        "--from",
        type=Literal["hub", "modelscope"],
        default="hub",
        help="Where from: the Hugging Face Hub, or ModelScope.",
    )
    parser.add_argument(
        "--endpoint",
        type=str,
        metavar="URL",
        help="Address of a mirror, such as https://hf-mirror.com; by default HF_ENDPOINT "
        "(MODELSCOPE_ENDPOINT), or the hub's own.",
    )
    parser.add_argument("--revision", type=str, help="Branch, tag or commit; by default main.")
    parser.add_argument("--subset", type=str, help="Folder of the data: wikitext-2-raw-v1, say.")
    for flag, what in (
        ("--all", "Download all files, needed or not."),
        (
            "--allow_pickle",
            "Accept weights that exist only as pytorch_model.bin, and convert them to "
            "safetensors; only tensors are read from it.",
        ),
    ):
        parser.add_argument(flag, type=bool, nargs="?", const=True, default=False, help=what)
    parser.add_argument(
        "--timeout",
        type=float,
        default=20.0,
        help="Seconds without a byte after which a transfer has stalled and is tried again.",
    )
    options = parser.parse_args(with_underscores(words)).as_dict()
    if options["check"] is not None:
        if options["kind"] or options["to"]:
            raise UsageError("--check DIR: it downloads nothing. Leave the other arguments out.")
        check(options["check"])
        return
    if options["kind"] not in (None, *KINDS):
        name = options["name"] or options["kind"]
        raise UsageError(
            f"fetch {options['kind']}: model or data? Write: fetch model {name}, or: fetch data "
            f"{name}."
        )
    if not options["kind"] or not options["name"]:
        raise UsageError(
            "fetch: nothing is named. Write: python -m gpt2_lightning fetch model "
            "openai-community/gpt2 --to gpt2; or: fetch data Salesforce/wikitext --subset "
            "wikitext-2-raw-v1 --to wikitext."
        )
    if not options["to"]:
        raise UsageError(
            f"fetch {options['kind']} {options['name']}: --to is missing, the folder to create: "
            f"--to {options['name'].rpartition('/')[2]}, say."
        )
    fetch(
        options["kind"],
        options["name"],
        options["to"],
        hub=options["from"],
        endpoint=options["endpoint"],
        revision=options["revision"],
        subset=options["subset"],
        everything=options["all"],
        allow_pickle=options["allow_pickle"],
        timeout=options["timeout"],
    )
