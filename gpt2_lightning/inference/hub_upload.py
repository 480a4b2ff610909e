"""A verified folder, sent to the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError

from gpt2_lightning.data.sources import HUB_ID
from gpt2_lightning.errors import UsageError
from gpt2_lightning.inference.export_folder import RECORD

FLAG = "--push_to_hub"


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
