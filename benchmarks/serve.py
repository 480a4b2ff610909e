"""Requests in company against the same requests one after another; a full queue; memory.

    pip install -c constraints.txt -e ".[dev]"
    python -m benchmarks.serve

The server runs in a process of its own; the requests are greedy, of a few words each.
"""

import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from jsonargparse import auto_cli

PATH = "/v1/completions"
START_SECONDS, REQUEST_SECONDS = 120, 600


class Server:
    """A server in a process of its own, for the length of a block."""

    def __init__(self, model: str, *words: str) -> None:
        command = [sys.executable, "-m", "gpt2_lightning", "serve", "--model", model, "--port=0"]
        self.process = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True)
        self.url = ""

    def __enter__(self) -> "Server":
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.match(r"Serving at (\S+)/", line):
                self.url = found[1]
                return self
        raise RuntimeError(f"the server ended with code {self.process.wait()}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(START_SECONDS)

    def megabytes(self) -> float:
        """Return the memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else float("nan")


def bodies(count: int, tokens: int) -> list[dict[str, Any]]:
    """Return requests with prompts of 4 to 32 ids, the same each time."""
    chance = random.Random(0)
    return [
        {
            "prompt": [chance.randrange(1000, 40000) for _ in range(chance.randint(4, 32))],
            "max_tokens": tokens,
            "temperature": 0,
        }
        for _ in range(count)
    ]


@dataclass
class Outcome:
    """What came of requests.

    Attributes:
        seconds: Time in all.
        latencies: Seconds of each request that was answered, in order.
        statuses: How many answers had which status.
        tokens: Tokens that were written.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    tokens: int = 0

    def latency(self, share: float) -> float:
        """Return the seconds that this share of the requests does not exceed."""
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


async def ask(url: str, requests: list[dict[str, Any]], clients: int) -> Outcome:
    """Send requests from so many clients, each one after another."""
    left = list(reversed(requests))
    outcome = Outcome()

    async def client() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=REQUEST_SECONDS) as session:
            while left:
                body = left.pop()
                start = time.perf_counter()
                answer = await session.post(PATH, json=body)
                outcome.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    outcome.latencies.append(time.perf_counter() - start)
                    outcome.tokens += answer.json()["usage"]["completion_tokens"]

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    outcome.seconds = time.perf_counter() - start
    outcome.latencies.sort()
    return outcome


def random_model(folder: str) -> str:
    """Write a model with random weights: 4 layers, 4 heads, 256 wide, GPT-2's vocabulary."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    torch.manual_seed(0)
    config = GPT2Config(n_layer=4, n_head=4, n_embd=256)
    GPT2LMHeadModel(config).save_pretrained(folder)
    letters = ByteLevelBPETokenizer()
    letters.train_from_iterator([], vocab_size=256, show_progress=False)
    GPT2Tokenizer(
        vocab=letters.get_vocab(),
        merges=[],
        unk_token=None,  # type: ignore[arg-type] # bytes leave nothing unknown
    ).save_pretrained(folder)
    return folder


def main(
    model: str | None = None,
    requests: int = 200,
    tokens: int = 64,
    clients: int = 16,
    memory: int = 2000,
    alone: int | None = None,
) -> None:
    """Print throughput and latency in company and alone, what a full queue does, and memory.

    Args:
        model: Run folder, folder in Hugging Face format, or Hub id; null is a random model.
        requests: Requests in company, and alone.
        tokens: Tokens of each.
        clients: Clients at a time.
        memory: Requests until the last look at the memory; the first is after a tenth of them.
        alone: Requests one after another; null is all of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        name = model or random_model(folder)
        load(name, bodies(requests, tokens), clients, alone or requests)
        full_queue(name, bodies(256, tokens))
        if memory:
            growth(name, bodies(memory, 8), clients)


def load(name: str, sent: list[dict[str, Any]], clients: int, alone: int) -> None:
    """Print both sides' throughput, and the latencies."""
    with Server(name) as server:
        asyncio.run(ask(server.url, sent[:clients], clients))  # warm
        rates: dict[int, float] = {}
        for label, requests, side in (
            (f"{clients} clients", sent, clients),
            ("one after another", sent[:alone], 1),
        ):
            it = asyncio.run(ask(server.url, requests, side))
            rates[side] = it.tokens / it.seconds
            print(
                f"{label:18} {len(requests)} requests in {it.seconds:.1f} s, "
                f"{rates[side]:.0f} tokens/s; latency p50 {it.latency(0.5):.2f} s, "
                f"p99 {it.latency(0.99):.2f} s; statuses {dict(it.statuses)}",
                flush=True,
            )
        print(f"{'ratio':18} {rates[clients] / rates[1]:.2f}")


def full_queue(name: str, sent: list[dict[str, Any]]) -> None:
    """Print what 64 clients meet where 32 requests may wait."""
    with Server(name, "--max_queue=32") as server:
        it = asyncio.run(ask(server.url, sent, 64))
    print(
        f"{'64 clients':18} a queue of 32: {len(sent)} requests in {it.seconds:.1f} s; "
        f"statuses {dict(it.statuses)}",
        flush=True,
    )


def growth(name: str, sent: list[dict[str, Any]], clients: int) -> None:
    """Print the server's memory after a tenth of the requests, and after all."""
    tenth = len(sent) // 10
    with Server(name) as server:
        asyncio.run(ask(server.url, sent[:tenth], clients))
        before = server.megabytes()
        asyncio.run(ask(server.url, sent[tenth:], clients))
        after = server.megabytes()
    print(
        f"{'memory':18} {before:.1f} MB after {tenth} requests, {after:.1f} MB after {len(sent)}: "
        f"{100 * (after / before - 1):+.2f} %"
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    auto_cli(main, as_positional=False)
