"""``serve``: an HTTP server with the OpenAI completions protocol, and a web page to try it."""

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from gpt2_lightning.errors import UsageError
from gpt2_lightning.parser import Parser, summary
from gpt2_lightning.startup import heavy_imports

# packages of the extra `serve` that this folder imports
EXTRA = ("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client")

KEY_VARIABLE = "GPT2_LIGHTNING_API_KEY"

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: str,
    compare: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_size: int = 16,
    max_prompt_tokens: int | None = None,
    max_new_tokens: int | None = None,
    max_samples: int = 64,
    max_queue: int = 64,
    max_body_bytes: int = 2**20,
    max_seconds: float = 300.0,
    max_idle_seconds: float = 10.0,
    api_key: str | None = None,
    allowed_host: str | None = None,
    allowed_origin: str | None = None,
    device: str = "auto",
    dtype: Literal["fp32", "bf16"] | None = None,
    revision: str | None = None,
) -> None:
    """Serve a model over HTTP with the OpenAI completions protocol, and a web page to try it.

    Args:
        model: Run folder such as lightning_logs/version_0 (its best model), .ckpt, folder in
            Hugging Face format, or Hub id.
        compare: A second model, served beside the first; the page shows both side by side.
        host: Address to listen on; 0.0.0.0 accepts other machines.
        port: Port to listen on; 0 chooses a free one.
        batch_size: Samples that are generated at the same time.
        max_prompt_tokens: Tokens of a prompt; null is the model's positions.
        max_new_tokens: Tokens of a sample; null is the model's positions.
        max_samples: Prompts of a request times its n.
        max_queue: Requests that may wait; further ones are refused (429).
        max_body_bytes: Bytes of a request's body.
        max_seconds: Seconds from a request's first byte to its answer's last.
        max_idle_seconds: Seconds for a request's headers, and for a client that sends no more of a
            body or reads nothing of an answer, until its connection is closed.
        api_key: Bearer token that clients must send. Other users of this machine can read a
            command line, but not the environment variable GPT2_LIGHTNING_API_KEY.
        allowed_host: A host name, besides localhost, that a proxy on this machine may send.
            Without a key, a server on a loopback address refuses others, since the name of another
            site could be made to point here (DNS rebinding).
        allowed_origin: A site, such as http://localhost:3000, whose pages may use the server
            (CORS); * allows any. Without it, browsers let no page of another site read an answer.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: fp32 or bf16; null keeps the type of the weights.
        revision: Branch, tag or commit of --model on the Hub.

    Raises:
        UsageError: If model, address or limits are not usable.
    """
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: must be >= 1.")
    try:
        with heavy_imports():
            from gpt2_lightning.serve.app import listen, run
            from gpt2_lightning.serve.service import Limits, Served, Service
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        raise UsageError(
            f"serve: {package} is not installed. "
            'pip install "gpt2-lightning[serve]" installs what it needs.'
        ) from error
    from gpt2_lightning.generate.text_model import load_model
    from gpt2_lightning.logs import quieten
    from gpt2_lightning.model.gpt2 import count_parameters, place

    limits = Limits(
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        max_samples=max_samples,
        max_queue=max_queue,
        max_body_bytes=max_body_bytes,
        max_seconds=max_seconds,
        max_idle_seconds=max_idle_seconds,
    )
    limits.check()
    key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE)
    _check_key(key)
    _check_origin(allowed_origin)
    hosts = None
    if key is None and host in LOOPBACK:
        hosts = frozenset([*LOOPBACK, *([allowed_host] if allowed_host is not None else [])])
    quieten()
    listener = listen(host, port)  # before the models are loaded, which takes a while
    served = []
    for name, wanted in _names(model, compare).items():
        chosen = revision if wanted == model else None
        loaded = load_model(wanted, chosen)
        place(loaded.model, device, dtype)
        served.append(Served(name, loaded, batch_size=batch_size, max_queue=max_queue))
    bound, at = listener.getsockname()[:2]

    def announce() -> None:
        for it in served:
            weights, cache = it.engine.model, it.engine.batch.bytes
            print(
                f"{it.name}: {count_parameters(weights):,} parameters, {weights.dtype}, "
                f"{weights.device}; key-value cache of {batch_size} samples: {cache / 1e6:,.0f} MB"
            )
        if host not in LOOPBACK and key is None:
            print("Without --api_key: anyone who can reach this address may use it.")
        print(f"Serving at http://{f'[{bound}]' if ':' in bound else bound}:{at}/", flush=True)

    run(Service(served, limits, key, hosts, allowed_origin), listener, announce)


def _check_key(key: str | None) -> None:
    """Raise UsageError for a key that no client can send, or that is empty by an unset variable."""
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        found = "it is empty" if not key else "it contains spaces or non-ASCII characters"
        raise UsageError(
            f"--api_key: {found}. Give another key, or leave it and {KEY_VARIABLE} out to serve "
            "without one."
        )


def _check_origin(origin: str | None) -> None:
    """Raise UsageError for what no browser sends as an origin."""
    if origin is None or origin == "*":
        return
    try:
        parts = urlsplit(origin.lower())
    except ValueError:  # such as a bracket that is not closed
        parts = urlsplit("")
    host = parts.netloc.rpartition("@")[2]
    host = host.removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ":"))
    sent = f"{parts.scheme}://{host}" if parts.scheme and host else "https://example.org"
    if origin != sent:
        raise UsageError(
            f"--allowed_origin {origin}: browsers name a site by scheme, host and port, such as "
            f"{sent}. Give that, or * for any site."
        )


def _names(model: str, compare: str | None) -> dict[str, str]:
    """Return the models by their names in requests."""
    wanted = [model, *([compare] if compare is not None else [])]
    if compare == model:
        raise UsageError(f"--compare {compare}: it is the same as --model. Give another one.")
    names = [_name_of(name) for name in wanted]
    return dict(zip(names if len(set(names)) == len(names) else wanted, wanted, strict=True))


def _name_of(model: str) -> str:
    path = Path(model).expanduser().absolute()
    if not path.exists():
        return model  # of the Hub
    return path.parent.name if path.name == "hf" else path.stem if path.is_file() else path.name


def main(words: list[str]) -> None:
    """Parse the words and run the verb."""
    parser = Parser(prog="gpt2_lightning serve", description=summary(serve))
    parser.add_argument("--config", action="config", help="YAML file of these flags.")
    parser.add_function_arguments(serve, as_group=False)
    options = parser.parse_words(words)
    serve(**options)
