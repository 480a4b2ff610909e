"""What is asked of a hub: a repository's name, and where and how patiently to look for it."""

import os
import re
from dataclasses import dataclass
from typing import Literal

from gpt2_lightning.errors import UsageError

Kind = Literal["model", "data"]
HubName = Literal["hub", "modelscope"]

ENDPOINTS: dict[HubName, tuple[str, str]] = {  # the variable that names a mirror, and the default
    "hub": ("HF_ENDPOINT", "https://huggingface.co"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"),
}
TITLES: dict[HubName, str] = {"hub": "the Hub", "modelscope": "ModelScope"}
EXAMPLES: dict[HubName, str] = {
    "hub": "openai-community/gpt2 or Salesforce/wikitext",
    "modelscope": "AI-ModelScope/gpt2",
}
NAMES: dict[HubName, re.Pattern[str]] = {  # the Hub has a few old names without an owner
    "hub": re.compile(r"\w[\w.-]*(/[\w.-]+)?"),
    "modelscope": re.compile(r"\w[\w.-]*/[\w.-]+"),
}


@dataclass(frozen=True)
class Asked:
    """A repository that is asked for.

    Attributes:
        kind: A model, or data.
        name: ORG/NAME.
        hub: Where to look.
        revision: Branch, tag or commit; null is the hub's main branch.
        endpoint: Address of the hub or its mirror, without a slash at its end.
        timeout: Seconds without a connection or without a byte after which a transfer has stalled.
    """

    kind: Kind
    name: str
    hub: HubName
    revision: str | None
    endpoint: str
    timeout: float

    @property
    def where(self) -> str:
        """The hub's name and address, for messages."""
        return f"{TITLES[self.hub]} ({self.endpoint})"

    @property
    def said(self) -> str:
        """What was asked for, as typed, for messages."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"{self.kind} {self.name}{revision}"


def asked_for(
    kind: Kind,
    name: str,
    hub: HubName,
    revision: str | None,
    endpoint: str | None,
    timeout: float,
) -> Asked:
    """Return what is asked for, with the endpoint that a flag, the environment or nobody named.

    Raises:
        UsageError: If a name, address or number is none.
    """
    if not NAMES[hub].fullmatch(name) or ".." in name:
        raise UsageError(
            f"{kind} {name}: it is no name of {TITLES[hub]}. Give one such as {EXAMPLES[hub]}, "
            "without an address before it."
        )
    variable, default = ENDPOINTS[hub]
    flag = "--endpoint" if endpoint else variable
    address = (endpoint or os.environ.get(variable) or default).rstrip("/")
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", address):
        raise UsageError(f"{flag} {address}: give an address such as https://hf-mirror.com.")
    if not timeout > 0:
        raise UsageError(f"--timeout {timeout}: give seconds, more than 0.")
    return Asked(kind, name, hub, revision, address, timeout)
