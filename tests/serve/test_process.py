"""The server as a process: how it begins, how it ends, and what a restart leaves as it was."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.running import PATIENCE_S, save_model, started


def complete(url: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_what_it_says(model_folder: Path) -> None:
    """The memory that it takes is known before the first request: slots times a state."""
    with started(model_folder, ["--slots", "3"]) as server:
        said = "".join(server.lines)
        [info] = httpx.get(f"{server.url}/v1/models").json()["data"]
        size = info["retnet"]["state_bytes"]
        assert f"3 slots x {size / 1000:.3g} kB = {3 * size / 1000:.3g} kB" in said
        assert server.metric("retnet_slot_bytes") == size
        assert server.stop() == 0


def test_sigterm_lets_requests_end(model_folder: Path) -> None:
    """What runs is finished; meanwhile nothing new is taken and the health says so."""
    with started(model_folder) as server:
        body = {"prompt": "a", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
        answers: list[dict[str, Any]] = []
        asking = threading.Thread(target=lambda: answers.append(complete(server.url, **body)))
        asking.start()
        server.until("retnet_slots_used", 1.0)
        with httpx.Client(base_url=server.url) as client:
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 10
            while client.get("/health").status_code == 200:
                assert time.monotonic() < deadline
            assert client.get("/health").json() == {"status": "draining"}
            refused = client.post("/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert refused.json()["error"]["code"] == "unavailable"
        asking.join()
        assert server.process.wait(PATIENCE_S) == 0
    [answer] = answers
    assert answer["usage"]["completion_tokens"] == 1500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_it_now(model_folder: Path, number: signal.Signals) -> None:
    with started(model_folder) as server:
        body = {"prompt": "a", "max_tokens": 60_000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(number)
            time.sleep(0.5)
            server.process.send_signal(number)
            start = time.monotonic()
            server.process.wait(PATIENCE_S)
            assert time.monotonic() - start < 5
            *_, last = [line for line in lines if line]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
        assert server.process.returncode == 0
        assert "Traceback" not in "".join(server.lines)


def test_a_restart_between_two_turns(model_folder: Path, tmp_path: Path) -> None:
    """A session goes on bit for bit as in a server that was not stopped."""
    arguments = ["--session_dir", str(tmp_path), "--dtype", "fp32"]
    turns: list[dict[str, Any]] = [
        {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0},
        {"prompt": " and then", "max_tokens": 30, "temperature": 1, "seed": 3, "stop": ["e"]},
        {"prompt": "!", "max_tokens": 20, "temperature": 1, "seed": 4, "logprobs": 3},
    ]

    def begun(url: str, name: str) -> None:
        assert httpx.post(f"{url}/v1/sessions", json={"id": name}).status_code == 201

    with started(model_folder, arguments) as server:
        begun(server.url, "whole")
        begun(server.url, "cut")
        expected = [complete(server.url, session_id="whole", **turn) for turn in turns]
        found = [complete(server.url, session_id="cut", **turns[0])]
        assert server.stop() == 0
    with started(model_folder, arguments) as server:
        found.append(complete(server.url, session_id="cut", **turns[1]))
        server.process.kill()
    with started(model_folder, arguments) as server:
        found.append(complete(server.url, session_id="cut", **turns[2]))
        told = httpx.get(f"{server.url}/v1/sessions").json()["data"]
        assert {each["id"] for each in told} == {"whole", "cut"}
        assert len({each["num_tokens"] for each in told}) == 1
    assert [answer["choices"] for answer in found] == [answer["choices"] for answer in expected]


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "retnet", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )


def test_a_port_that_is_taken(model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("--model", str(model_folder), "--port", str(port))
    assert ended.returncode == 2
    assert f"can't listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_model_that_is_broken(tmp_path: Path) -> None:
    save_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = run("--model", str(tmp_path), "--port", "0")
    assert ended.returncode == 2
    assert "model.safetensors" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model 'nowhere' is not a folder"),
        (["--slots", "0"], "--slots must be at least 1"),
        (["--port", "99999"], "--port must be in"),
        (["--timeout_s", "nan"], "--timeout_s must be a number"),
        (["--dtype", "fp8"], "--dtype must be one of auto, fp32, bf16"),
        (["--sloots", "3"], "did you mean"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
