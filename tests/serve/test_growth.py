"""What a server keeps does not grow with what it has answered."""

import json
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.serve.running import PATIENCE_S, RunningServer, started

# `retnet` that tells, on SIGUSR1, of what objects it has how many, and of all blocks of memory that
# Python has given out: of what the garbage collector doesn't know (texts, bytes, numbers) too.
COUNTING = """
import gc
import json
import signal
import sys
from collections import Counter

from retnet.cli import main


def tell(*_):
    gc.collect()
    kinds = Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
    told = {**kinds, "blocks": sys.getallocatedblocks()}
    sys.stderr.write(f"counts {json.dumps(told)}\\n")
    sys.stderr.flush()


signal.signal(signal.SIGUSR1, tell)
sys.exit(main())
"""
CONNECTION = "retnet.serve.connections.Bounded"
COMPLETIONS, CHAT, SESSIONS = "/v1/completions", "/v1/chat/completions", "/v1/sessions"

# Rounds between two counts. What is kept of each shows every time; what is cached for good doesn't.
NUM_ROUNDS = 20
# PyTorch and the libraries remember some small things for some time.
MOST_BLOCKS = 5 * NUM_ROUNDS


@pytest.fixture(scope="module")
def counted(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server that can be counted, with room for few sessions and beginnings of prompts."""
    sessions = tmp_path_factory.mktemp("sessions")
    arguments = ["--slots", "4", "--prefill_chunk", "32", "--session_dir", str(sessions)]
    arguments += ["--prefix_cache_mb", "0.2", "--session_mb", "0.2"]
    with started(model_folder, arguments, program=("-c", COUNTING)) as server:
        yield server


def test_nothing_is_kept_of_requests(counted: RunningServer) -> None:
    """Of none of the things that clients do, with names, texts and connections that are new."""
    with counted.client() as client:
        counts = [_count_after(counted, client, turn) for turn in range(4)]
    growths = [Counter(after) - Counter(before) for before, after in pairwise(counts)]
    least = {kind: min(growth[kind] for growth in growths) for kind in growths[-1]}
    num_blocks = least.pop("blocks", 0)
    assert {kind: number for kind, number in least.items() if number >= NUM_ROUNDS} == {}
    assert num_blocks < MOST_BLOCKS


def test_nothing_is_kept_of_connections_that_are_reset(counted: RunningServer) -> None:
    """They used to be kept for the half minute in which another request might have come."""
    links = [HTTPConnection("127.0.0.1", counted.port) for _ in range(NUM_ROUNDS)]
    for link in links:
        link.request("GET", "/health")
        link.getresponse().read()
    assert _counts(counted)[CONNECTION] >= NUM_ROUNDS
    for link in links:
        link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.close()
    deadline = time.monotonic() + 10
    while _counts(counted).get(CONNECTION, 0) >= NUM_ROUNDS:
        assert time.monotonic() < deadline


def _count_after(server: RunningServer, client: httpx.Client, turn: int) -> dict[str, int]:
    for number in range(NUM_ROUNDS):
        name = f"v{turn}-{number}"
        _write(client, name)
        _use_a_session(client, name)
        _be_wrong(client, name)
        _look_around(client, name)
        _leave(server, name)
    server.until("retnet_slots_used", 0.0)
    return _counts(server)


def _write(client: httpx.Client, name: str) -> None:
    full = {"prompt": name + "a" * 400, "max_tokens": 3, "n": 2, "logprobs": 2, "echo": True}
    stopped = {"prompt": name, "max_tokens": 9, "stop": [name, "a"], "presence_penalty": 1.0}
    chat = {"messages": [{"role": "user", "content": name}], "max_tokens": 3}
    for path, body in ((COMPLETIONS, full), (COMPLETIONS, stopped), (CHAT, chat)):
        for stream in (False, True):
            assert client.post(path, json={**body, "stream": stream}).status_code == 200


def _use_a_session(client: httpx.Client, name: str) -> None:
    fork, copy, bad = (f"{name}-{kind}" for kind in ("fork", "copy", "bad"))
    assert client.post(SESSIONS, json={"id": name}).status_code == 201
    turn = {"session_id": name, "prompt": name, "max_tokens": 3}
    assert client.post(COMPLETIONS, json=turn).status_code == 200
    assert client.post(f"{SESSIONS}/{name}/fork", json={"id": fork}).status_code == 201
    state = client.get(f"{SESSIONS}/{name}/state").content
    assert client.put(f"{SESSIONS}/{copy}/state", content=state).status_code == 200
    assert client.put(f"{SESSIONS}/{bad}/state", content=state[:-1]).status_code == 400
    for each in (name, fork):  # files may grow in number
        assert client.delete(f"{SESSIONS}/{each}").status_code == 200


def _be_wrong(client: httpx.Client, name: str) -> None:
    bodies = ({"temperature": -1}, {"session_id": name}, {"model": name}, {"logit_bias": {name: 1}})
    for body in bodies:
        assert client.post(COMPLETIONS, json={"prompt": name, **body}).status_code in (400, 404)
    assert client.post(COMPLETIONS, content=f'{{"{name}').status_code == 400
    for path in (f"/{name}", f"/v1/models/{name}", f"{SESSIONS}/{name}"):
        assert client.get(path).status_code == 404


def _look_around(client: httpx.Client, name: str) -> None:
    for path in ("/health", "/metrics", "/v1/models", SESSIONS, "/tokenizer_info"):
        assert client.get(path).status_code == 200
    tokens = client.post("/tokenize", json={"prompt": name}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == name


def _leave(server: RunningServer, name: str) -> None:
    """Go in the middle of an answer, of a stream, of a body, of a head; and send no HTTP."""
    asked = {"prompt": name, "max_tokens": 2000, "ignore_eos": True}
    begun = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole, streamed = (
        f"{begun}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        for body in (json.dumps({**asked, "stream": each}) for each in (False, True))
    )
    nonsense = f"{name}\r\n\r\n".encode()
    for sent, start in (
        (whole, b""),
        (streamed, b"HTTP/1.1 200"),
        (whole[:-1], b""),
        (begun.encode(), b""),
        (nonsense, b"HTTP/1.1 400"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as link:
            link.sendall(sent)
            assert not start or link.recv(100).startswith(start)


def _counts(server: RunningServer) -> dict[str, int]:
    """What the server's process has now, by kind."""
    num_before = len(server.lines)
    server.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for line in server.lines[num_before:]:
            if line.startswith("counts "):
                counts: dict[str, int] = json.loads(line.removeprefix("counts "))
                return counts
        assert time.monotonic() < deadline, server.lines
        time.sleep(0.01)
