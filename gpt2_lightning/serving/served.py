"""The models that a server has, and what it may do with them."""

import time
from dataclasses import dataclass, field

from gpt2_lightning.data.token_text import TokenBytes
from gpt2_lightning.inference.text_model import TextModel
from gpt2_lightning.model.causal_lm import positions_of
from gpt2_lightning.serving.engine import Engine
from gpt2_lightning.serving.limits import Limits
from gpt2_lightning.serving.refusal import Refusal


class Served:
    """A model with its engine.

    Args:
        name: Its id in requests.
        loaded: The model, in its place, and its tokenizer.
        batch_size: Samples that are written at the same time.
        max_queue: Requests that wait.
    """

    def __init__(self, name: str, loaded: TextModel, *, batch_size: int, max_queue: int) -> None:
        self.name = name
        self.tokenizer = loaded.tokenizer
        self.tokens = TokenBytes(loaded.tokenizer)
        self.end_of_text = int(loaded.tokenizer.eos_token_id)
        self.positions = positions_of(loaded.model)
        self.vocabulary = int(loaded.model.config.vocab_size)
        self.created = int(time.time())
        self.engine = Engine(loaded.model, batch_size=batch_size, max_queue=max_queue)


@dataclass
class Service:
    """What is served, to whom, within which limits.

    Attributes:
        models: Those that are served, the default first.
        limits: What a client may ask for.
        api_key: What a client has to know; null for nothing.
        hosts: Names by which the server may be asked for, in the header Host; null for any.
        stopping: Whether no further request is taken.
        requests: Requests that are being answered.
    """

    models: list[Served]
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    hosts: frozenset[str] | None = None
    stopping: bool = False
    requests: int = 0

    def find(self, name: str | None) -> Served:
        """Return the model of a name, or the default where none is named.

        Raises:
            Refusal: If there is none of the name.
        """
        if name is None:
            return self.models[0]
        for served in self.models:
            if served.name == name:
                return served
        names = ", ".join(served.name for served in self.models)
        raise Refusal(
            404,
            f"model: there is no {name!r} here. Models: {names}.",
            param="model",
            code="model_not_found",
        )
