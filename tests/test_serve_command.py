import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gpt2_lightning.cli import main
from gpt2_lightning.serve.command import EXTRA, KEY_VARIABLE
from gpt2_lightning.serve.service import Service
from tests.command_line import Mistake
from tests.server import service_of

KEY = {"Authorization": "Bearer sesame"}


@contextmanager
def serving(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the verb in a process of its own; give it and its address."""
    command = [sys.executable, "-m", "gpt2_lightning", "serve", "--port", "0", *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    try:
        assert process.stdout is not None
        said = ""
        while not (address := re.search(r"Serving at (http://\S+)\n", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield process, address[1]
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.slow
def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_0(
    opinionated_model: Path,
) -> None:
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 60, "n": 64, "seed": 1, "stream": True}
    with (
        serving(
            *("--model", str(opinionated_model), "--batch-size", "2"), **{KEY_VARIABLE: "sesame"}
        ) as (process, url),
        httpx2.Client(base_url=url, timeout=60, trust_env=False, headers=KEY) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        assert httpx2.get(f"{url}v1/models", trust_env=False).status_code == 401
        lines = answer.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        process.send_signal(signal.SIGTERM)
        deadline = threading.Event()
        for _ in range(100):  # the signal needs a moment
            refused = client.post("/v1/completions", json={"prompt": "a"})
            if refused.status_code != 200:
                break
            deadline.wait(0.02)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert client.get("/health").status_code == 503
        events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        ends = [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]]
        assert sum(end is not None for end in ends) == 64
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()


@pytest.mark.slow
def test_the_second_signal_gives_up_what_is_under_way(opinionated_model: Path) -> None:
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 60, "n": 64, "stream": True}
    with (
        serving("--model", str(opinionated_model), "--batch-size", "1") as (process, url),
        httpx2.Client(base_url=url, timeout=60, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        process.send_signal(signal.SIGTERM)
        while client.get("/health").status_code == 200:  # two signals at once would be one
            pass
        process.send_signal(signal.SIGTERM)
        *_, last = (line for line in lines if line)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_what_signals_ask_for(tiny_model: Path) -> None:
    from gpt2_lightning.serve.app import Server

    for number, raised_again in ((signal.SIGTERM, []), (signal.SIGINT, [signal.SIGINT])):
        app = Server(service_of(tiny_model))
        app.handle_exit(number, None)
        assert (app.service.stopping, app.giving_up, app.force_exit) == (
            True,
            False,
            False,
        )
        assert app._captured_signals == raised_again  # exit code 130 after Ctrl-C alone
        app.handle_exit(number, None)
        assert (app.giving_up, app.force_exit) == (True, False)
        app.handle_exit(number, None)
        assert app.force_exit


def test_names_of_models(
    opinionated_model: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gpt2_lightning.serve import app

    run = tmp_path / "lightning_logs" / "version_3"
    run.mkdir(parents=True)
    (run / "hf").symlink_to(tiny_model)
    (tmp_path / tiny_model.name).symlink_to(opinionated_model)
    served: list[list[str]] = []

    def keep(service: Service, listener: socket.socket, announce: object) -> None:
        listener.close()
        served.append([it.name for it in service.models])

    monkeypatch.setattr(
        app,
        "run",
        keep,
    )
    for words in (
        ["--model", str(opinionated_model), "--compare", str(tiny_model)],
        ["--model", "lightning_logs/version_3/"],
        ["--model", f"./{tiny_model.name}", "--compare", str(opinionated_model)],
        ["--model", str(run / "hf"), "--compare", str(run)],
    ):
        main(["serve", "--port=0", *words])
    assert served[0] == [opinionated_model.name, tiny_model.name]
    assert served[1] == ["version_3"]
    assert served[2] == [tiny_model.name, opinionated_model.name]
    assert served[3] == [str(run / "hf"), str(run)]  # both are version_3


def test_mistakes(mistake: Mistake, opinionated_model: Path, tmp_path: Path) -> None:
    model = ("serve", "--model", str(opinionated_model))
    for words, message in (
        (("serve",), "--model: must be given, such as --model lightning_logs/version_0."),
        ((*model, "--prot", "1"), "--prot: there is no such flag. Did you mean --port?"),
        ((*model, "--batch_size", "0"), "--batch_size 0: must be >= 1."),
        ((*model, "--max-queue", "0"), "--max_queue 0: must be > 0."),
        ((*model, "--max_seconds", "-1"), "--max_seconds -1.0: must be > 0."),
        ((*model, "--max_seconds", ".inf"), "--max_seconds inf: must be > 0 and finite."),
        ((*model, "--max_prompt_tokens=-1"), "--max_prompt_tokens -1: must be > 0."),
        ((*model, "--port", "70000"), "--port 70000: must be in 0..65535"),
        ((*model, "--host", "256.0.0.1"), "--host 256.0.0.1 --port 8000: it cannot listen there"),
        ((*model, "--host", ".."), "--host .. --port 8000: it cannot listen there"),
        ((*model, "--api_key="), "--api_key: it is empty"),
        ((*model, "--api_key=clé à"), "--api_key: it contains spaces"),
        ((*model, "--allowed_origin=https://A.org:443/x"), "such as https://a.org. Give that"),
        ((*model, "--allowed_origin=a.org"), "such as https://example.org. Give that"),
        ((*model, "--allowed_origin=http://[::1"), "such as https://example.org. Give that"),
        ((*model, "--compare", str(opinionated_model)), "it is the same as --model"),
        (("serve", "--port=0", "--model", str(tmp_path)), "neither a model in Hugging Face"),
    ):
        assert message in mistake(*words)


def test_a_port_that_is_taken(mistake: Mistake, opinionated_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = mistake("serve", "--model", str(opinionated_model), "--port", port)
    assert f"--port {port}: it cannot listen there (Address already in use)" in message
    assert "--port 0 chooses a free one" in message


@pytest.mark.slow
@pytest.mark.parametrize("missing", [EXTRA, *[(package,) for package in EXTRA]], ids=", ".join)
def test_without_the_extra(missing: tuple[str, ...], opinionated_model: Path) -> None:
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n"
        "from gpt2_lightning.cli import main\n"
        f"main(['serve', '--model', {str(opinionated_model)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    found = re.fullmatch(
        r"error: serve: (\w+) is not installed\. "
        r'pip install "gpt2-lightning\[serve\]" installs what it needs\.\n',
        done.stderr,
    )
    assert found is not None, done.stderr
    assert found[1] in missing


def test_help_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--model", "--compare", "--host", "--port", "--api_key", "--max_seconds"):
        assert flag in text
