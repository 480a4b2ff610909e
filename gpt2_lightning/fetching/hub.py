"""What a repository of the Hub, or of a mirror of it, holds."""

from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from gpt2_lightning.fetching.answers import check_status
from gpt2_lightning.fetching.asked import Asked
from gpt2_lightning.fetching.listing import Listing, RemoteFile, safe_path


def list_hub(asked: Asked) -> Listing:
    """List a repository at the commit that its revision stands for now.

    Content is fetched over plain HTTP, not Xet: a mirror cannot serve that, and the Hub serves
    both. The token is the client's own, from HF_TOKEN or ``hf auth login``.

    Raises:
        Unavailable: If the hub may answer otherwise a moment later.
        UsageError: If it refuses.
    """
    api = HfApi(endpoint=asked.endpoint)
    kind, ask = ("dataset", api.dataset_info) if asked.kind == "data" else ("model", api.model_info)
    try:
        about = ask(asked.name, revision=asked.revision, files_metadata=True, timeout=asked.timeout)
    except HfHubHTTPError as error:
        check_status(error.response, asked)
        raise
    commit = about.sha or asked.revision or "main"
    files = [
        RemoteFile(
            path=safe_path(file.rfilename, asked),
            url=hf_hub_url(
                asked.name,
                file.rfilename,
                repo_type=kind,
                revision=commit,
                endpoint=asked.endpoint,
            ),
            size=file.size,
            sha256=file.lfs.sha256 if file.lfs else None,
            git_sha1=None if file.lfs else file.blob_id,
        )
        for file in about.siblings or []
    ]
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Listing(asked, commit, tuple(files), headers)
