"""Whatever the schema of the API allows, and what it doesn't: never a 5xx."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.running import started


@pytest.mark.slow
def test_no_5xx(model_folder: Path, tmp_path: Path) -> None:
    arguments = ["--max_new_tokens", "24", "--session_dir", str(tmp_path / "sessions")]
    with started(model_folder, arguments) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        options = ["--checks", "not_a_server_error", "--mode", "all", "--max-examples", "8"]
        options += ["--phases", "examples,coverage,fuzzing,stateful", "--seed", "1", "--no-color"]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        [passed] = re.findall(r"generated, (\d+) passed$", done.stdout, re.MULTILINE)
        assert int(passed) > 200
        server.until("retnet_slots_used", 0.0)
        assert "Traceback" not in "".join(server.lines)
