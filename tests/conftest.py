"""What every test stands on: no network, a home of its own, small text and a small model."""

import os

# read once, when the hub's client is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Lightning's strategies for several processes would set torch's threads for good, and a process
# that is forked where threads have computed waits for them for ever
os.environ["OMP_NUM_THREADS"] = "1"

import logging
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its handlers are there to be cleared below
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2_lightning.cli import main
from gpt2_lightning.data.tokenizer import train_tokenizer
from tests.command_line import FitOnce, Mistake, fine_tuning, fit
from tests.corpus import wiki_rows, write_wiki

# they hold on to the screen as it was at the import, and would write to it in no test's name
for library in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(library).handlers.clear()
# a shell ignores it on behalf of what it runs in the background
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # threads only wait for each other in models of this size


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test an empty folder, cache and home, and restore what it leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    environment = dict(os.environ)
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    state, random_state = torch.get_rng_state(), random.getstate()
    yield
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    ours = logging.getLogger("gpt2_lightning")
    ours.handlers.clear()  # they write to this test's screen
    ours.propagate = True  # to caplog, in whatever order tests run
    torch.set_rng_state(state)
    random.setstate(random_state)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _slow_is_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only a test marked slow start our program as a process, whose imports take seconds."""
    if "slow" in request.keywords:
        return
    start = subprocess.Popen.__init__

    def refuse(self: "subprocess.Popen[Any]", args: Any, *more: Any, **options: Any) -> None:
        # libraries start processes too
        assert "gpt2_lightning" not in str(args), "mark this test with pytest.mark.slow"
        start(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GPT-2 of two small layers, dropout 0.1, and a BPE of 300 tokens."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    tokenizer = train_tokenizer(wiki_rows(articles=8), 300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opinionated_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights three times as large: untrained, it finds all tokens alike."""
    folder = tmp_path_factory.mktemp("opinionated") / "opinionated-gpt2"
    shutil.copytree(tiny_model, folder)
    model = GPT2LMHeadModel.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def wiki_folder(tmp_path: Path) -> Path:
    """A folder with wiki.train.raw, wiki.valid.raw and wiki.test.raw, 24, 4 and 5 articles."""
    return write_wiki(tmp_path)


@pytest.fixture(scope="session")
def _fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> FitOnce:
    text = write_wiki(tmp_path_factory.mktemp("text"))

    @cache
    def begin(*words: str) -> Path:
        folder = tmp_path_factory.mktemp("fitted")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            fit(*fine_tuning(text, tiny_model), *words)
        return folder

    return begin


@pytest.fixture
def fit_once(_fitted: FitOnce, tmp_path: Path) -> FitOnce:
    """Fit as on `wiki_folder`, once for all tests that give the same flags: each has a copy."""

    def run(*words: str) -> Path:
        folder = _fitted(*words)
        for name in ("lightning_logs", "cache"):
            shutil.copytree(folder / name, tmp_path / name, dirs_exist_ok=True)
        (begun,) = (folder / "lightning_logs").iterdir()
        return begun.relative_to(folder)

    return run


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a command line that is one mistake; return its message."""

    def run(*words: str) -> str:
        capsys.readouterr()
        before = set(Path("lightning_logs").rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            main(list(words))
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        print(message)
        assert "Traceback" not in message
        assert message.splitlines()[-1].startswith("error: ")
        assert set(Path("lightning_logs").rglob("*")) == before
        return message.splitlines()[-1]

    return run
