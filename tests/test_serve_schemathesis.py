"""Requests made up from the server's own description: good ones, and every kind of bad one."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.server import at_rest, running, service_of

pytestmark = pytest.mark.slow

CHECKS = [
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
    *("negative_data_rejection", "unsupported_method", "missing_required_header"),
]


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_every_answer_is_one_that_is_described(opinionated_model: Path, tmp_path: Path) -> None:
    service = service_of(opinionated_model, max_new_tokens=3, max_samples=4)
    with running(service) as server:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
                *("--checks", ",".join(CHECKS), "--max-examples", "8", "--seed", "1"),
                *("--generation-database", "none", "--no-color"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env=os.environ | {"HOME": str(tmp_path)},
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert "Operations:       5 selected / 5 total" in run.stdout
        metrics = server.get("/metrics").text
        answered = [line for line in metrics.splitlines() if "requests_total{" in line]
        assert any('path="/v1/completions",status="200"' in line for line in answered)
        assert any('path="/v1/completions",status="400"' in line for line in answered)
        assert not any('status="5' in line for line in answered)
        assert at_rest(server)
        assert server.text(prompt="a", max_tokens=3, seed=1)
