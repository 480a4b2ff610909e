"""A user's mistake, and why a library brought nothing from a hub, a folder or a file."""

import os
import pickle
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec


class UsageError(ValueError):
    """A mistake of the user's: shown as its message alone, without a traceback, with exit code 2.

    The message names the flag, what was found and what would work.
    """


LONGEST = 300  # characters of a library's own words

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")  # variables that the HTTP client reads


def reason(error: BaseException) -> str:
    """Say why a model, tokenizer or data set did not load.

    The libraries say "couldn't connect" of a hub that is out of reach, one that refuses, and one
    that they were told not to ask.

    Args:
        error: What a library raised, with its causes.
    """
    # needed where something has failed, and by then imported
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    links = list(_chain(error))
    if (pickled := _pickled(links)) is not None:
        return pickled

    def among(*kinds: type[BaseException]) -> BaseException | None:
        return next((link for link in links if isinstance(link, kinds)), None)

    if any("trust_remote_code" in str(link) for link in links):  # the argument that would run it
        return "it needs Python code of its own, which is never run here"
    # both clients raise these two before anything is sent
    refused_proxy = any(
        isinstance(link, ImportError | ValueError) and "proxy" in str(link).lower()
        for link in links
    )
    if refused_proxy and (proxy := unusable_proxy()) is not None:
        return proxy
    if (refused := among(HfHubHTTPError)) is not None:
        return one_line(refused)
    if among(HFValidationError):
        return "there is no such folder, and a Hub id has one slash at most"
    # datasets raises a ConnectionError and keeps its cause to itself
    if constants.is_offline_mode() and among(LocalEntryNotFoundError, ConnectionError):
        return (
            "no folder here has this name, the cache does not hold it, and HF_HUB_OFFLINE=1 keeps "
            "the Hub out"
        )
    if (broken := among(*transport_errors(), ConnectionError)) is not None:
        return (
            f"no folder here has this name, and {constants.ENDPOINT} cannot be reached: "
            f"{one_line(broken)}. HF_ENDPOINT names a mirror (https://hf-mirror.com, say); python "
            "-m gpt2_lightning fetch takes it from one, or from ModelScope"
        )
    return one_line(error)


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what HTTP clients raise of a connection: httpx2, and that of huggingface_hub.

    Its releases 1, which transformers up to 5.17 takes, request with httpx, of which httpx2 is a
    continuation: the names of the errors are the same.
    """
    import httpx2

    older = sys.modules.get("httpx")
    return (httpx2.TransportError, *([older.TransportError] if older else []))


def _pickled(links: list[BaseException]) -> str | None:
    """Say what torch refused to unpickle; its own words end in how to run the code in there."""
    for link in links:
        told = str(link)
        # torch wraps what its restricted unpickler refused, sometimes in a RuntimeError
        if isinstance(link, pickle.UnpicklingError) or "weights_only" in told:
            named = re.search(r"(?:GLOBAL|class|holds) ([\w.]+)", told)
            what = f" ({named[1]})" if named else ""
            return (
                f"it holds more than tensors and plain values{what}, which could run code when it "
                "is read, or it is damaged"
            )
    return None


def unusable_proxy() -> str | None:
    """Name the proxy in the environment that the HTTP client cannot use, and what would work."""
    for variable in PROXIES:
        for name in (variable, variable.lower()):
            value = os.environ.get(name, "")
            scheme, separator, rest = value.partition("://")
            if not separator or scheme.lower() in ("http", "https"):
                continue
            remedy = f"Give the proxy's HTTP port: export {name}=http://{rest or 'HOST:PORT'}"
            if scheme.lower() in ("socks5", "socks5h"):
                if find_spec("socksio") is not None:
                    continue
                remedy = f"pip install socksio makes {scheme} work. Or g" + remedy[1:]
            return (
                f"{name}={value} in the environment is a proxy that the HTTP client cannot use. "
                f"{remedy}; unset {name} goes without"
            )
    return None


def one_line(error: BaseException) -> str:
    """Return an error's message as one line of bounded length; its type if it has none."""
    return " ".join(str(error).split())[:LONGEST].rstrip(".") or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
