"""What one client may ask of the server."""

import math
from dataclasses import dataclass

from gpt2_lightning.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Limits of the server, each with a flag of its own name.

    Attributes:
        max_prompt_tokens: Tokens of a prompt; null is the model's positions.
        max_new_tokens: Tokens of a sample; null is the model's positions.
        max_samples: Prompts of a request times its ``n``.
        max_queue: Requests that wait for the first of their samples to begin.
        max_body_bytes: Bytes of a request's body.
        max_seconds: Seconds from a request's first byte to its answer's last.
        max_idle_seconds: Seconds for a request's headers, and those in which a client sends no
            more of a body, or takes no byte of an answer, before its connection is closed.
    """

    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    max_samples: int = 64
    max_queue: int = 64
    max_body_bytes: int = 2**20
    max_seconds: float = 300.0
    max_idle_seconds: float = 10.0

    def check(self) -> None:
        """See that the limits leave something to serve.

        Raises:
            UsageError: If one does not.
        """
        for name, value in vars(self).items():
            if value is not None and not 0 < value < math.inf:
                finite = "" if value <= 0 else " and finite"
                raise UsageError(f"--{name} {value}: it has to be above 0{finite}.")
