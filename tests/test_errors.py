import itertools
import sys
from types import ModuleType
from unittest.mock import Mock

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from gpt2_lightning.errors import reason
from gpt2_lightning.fetch.hubs import RepoRef, list_hub
from tests.command_line import Mistake


def raised(*links: Exception) -> Exception:
    """Return the first of some errors, each with the next as its cause."""
    for error, cause in itertools.pairwise(links):
        error.__cause__ = cause
    return links[0]


COULD_NOT = OSError("We couldn't connect to the Hub.")
NOT_HERE = LocalEntryNotFoundError("It is not in the cache.")


def test_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = raised(COULD_NOT, NOT_HERE, httpx2.ConnectError("Connection refused"))
    said = "no folder here has this name, and http://127.0.0.1:9 cannot be reached: Connection "
    assert reason(error).startswith(said)


def test_out_of_reach_by_the_older_client(monkeypatch: pytest.MonkeyPatch) -> None:
    older = ModuleType("httpx")
    vars(older)["TransportError"] = TimeoutError  # any class of its own
    monkeypatch.setitem(sys.modules, "httpx", older)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    late = TimeoutError("late")
    assert " cannot be reached: late. HF_ENDPOINT" in reason(raised(COULD_NOT, late))
    monkeypatch.setattr(HfApi, "model_info", raises := Mock(side_effect=late))
    repo = RepoRef("model", "a/b", "hub", None, "http://127.0.0.1:9", 1.0)
    with pytest.raises(httpx2.TransportError, match="late"):
        list_hub(repo)
    assert raises.called


def test_told_not_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for error in (raised(COULD_NOT, NOT_HERE), ConnectionError("Couldn't reach a/b")):
        assert "HF_HUB_OFFLINE=1 keeps the Hub out" in reason(error)


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://127.0.0.1:7890", "pip install socksio makes socks5 work. Or give the proxy"),
        ("socks://127.0.0.1:7890", "Give the proxy's HTTP port: export ALL_PROXY=http://127.0.0.1"),
    ],
)
def test_a_proxy_that_the_client_cannot_use(
    monkeypatch: pytest.MonkeyPatch, mistake: Mistake, proxy: str, said: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises((ImportError, ValueError)) as unusable:
        httpx2.Client()
    for told in (
        reason(raised(OSError("Can't load the configuration"), unusable.value)),
        mistake("fetch", "model", "a/b", "--to", "a"),
    ):
        assert f"ALL_PROXY={proxy} in the environment is a proxy that the HTTP client" in told
        assert said in told
        assert "unset ALL_PROXY goes without" in told


def test_no_name_of_the_hubs() -> None:
    error = raised(OSError("..."), HFValidationError("Repo id must be in the form"))
    assert reason(error) == "there is no such folder, and a Hub id has one slash at most"


def test_their_own_words_otherwise() -> None:
    assert reason(OSError("a  file\nis damaged.")) == "a file is damaged"
    assert len(reason(OSError("a" * 1000))) == 300
