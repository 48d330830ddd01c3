"""Two replicas on this machine, by way of a real `retnet serve --replicas 2` and the Ray that it
starts: what users of one process have, and what happens when a replica dies."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from retnet.serve.config import ServeConfig
from retnet.serve.replica import Replica
from tests.serve.running import PATIENCE_S, RunningServer, save_model, started

pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]  # Ray gives up on busy machines

KEY = "secret"
ENDLESS = {"prompt": "a", "max_tokens": 60_000, "ignore_eos": True, "temperature": 0}


@contextmanager
def cluster(folder: Path, sessions: Path, *arguments: str) -> Iterator[RunningServer]:
    """A server with replicas."""
    flags = ["--dtype", "fp32", "--slots", "4", "--session_dir", str(sessions), *arguments]
    headers = {"authorization": f"Bearer {KEY}"}
    environment = {"RETNET_API_KEY": KEY, "RAY_ADDRESS": ""}
    with started(folder, flags, environment, headers=headers, start_s=300) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replicated") / "tiny"
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with cluster(folder, tmp_path_factory.mktemp("sessions"), "--replicas", "2") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def wait_for(server: RunningServer, name: str, values: list[float]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (found := server.metrics(name)) != values:
        assert time.monotonic() < deadline, f"{name} is {found}, not {values}"


def processes(server: RunningServer) -> list[psutil.Process]:
    """The server's, and all that it has begun."""
    process = psutil.Process(server.process.pid)
    return [process, *process.children(recursive=True)]


def process_of(server: RunningServer, index: int) -> psutil.Process:
    """The process of a replica."""
    name = re.compile(rf"ray::ServeReplica:retnet-.*-{index}:replica")
    [found] = [each for each in processes(server) if name.match(" ".join(each.cmdline()))]
    return found


def home_of(client: httpx.Client, server: RunningServer, session_id: str) -> int:
    """The replica that a session is in, told by where tokens are written."""
    before = server.metrics("retnet_generated_tokens_total")
    complete(client, prompt="a", max_tokens=3, ignore_eos=True, session_id=session_id)
    after = server.metrics("retnet_generated_tokens_total")
    [home] = [index for index in (0, 1) if after[index] != before[index]]
    assert after[home] == before[home] + 3
    return home


def make_session(client: httpx.Client, session_id: str) -> None:
    assert client.post("/v1/sessions", json={"id": session_id}).status_code == 201


def test_what_it_says(server: RunningServer, client: httpx.Client) -> None:
    said = "".join(server.lines)
    [info] = client.get("/v1/models").json()["data"]
    size = info["retnet"]["state_bytes"]
    assert f"2 replicas x 4 slots x {size / 1000:.3g} kB = {8 * size / 1000:.3g} kB" in said
    assert "2 times, each with 1 CPU thread" in said
    assert server.metric("retnet_replicas_up") == 2
    assert httpx.get(f"{server.url}/health").json() == {"status": "ready"}


def test_others_reach_nothing(server: RunningServer) -> None:
    """What Ray begins would run anybody's code. All of it listens to this machine only, but for a
    port of Serve's in each replica; those want Ray's token."""
    listening = {
        (process.pid, connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in processes(server)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    open_ports = {(pid, port) for pid, address, port in listening if address != "127.0.0.1"}
    assert {pid for pid, _ in open_ports} <= {process_of(server, each).pid for each in (0, 1)}
    for _, port in open_ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refusal:
                call(b"", timeout=10)
            assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_what_comes_in_front(server: RunningServer) -> None:
    """The key, names and sizes are looked at before anything reaches a replica."""
    wrong = httpx.get(f"{server.url}/v1/models", headers={"authorization": "Bearer no"})
    assert wrong.status_code == 401
    assert wrong.json()["error"]["code"] == "invalid_api_key"
    with server.client(host="example.com") as client:
        assert client.get("/v1/models").status_code == 403
    with server.client() as client:
        assert client.post("/v1/completions", content=b" " * 9_000_000).status_code == 413
        assert client.put("/v1/sessions/big/state", content=b" " * 9_000_000).status_code == 413
        assert client.post("/v1/completions", json={"prompt": 3}).status_code == 400
        assert client.get("/v1/nothing").status_code == 404


def test_both_work(server: RunningServer, client: httpx.Client) -> None:
    """Two requests are in a replica each; when their clients leave, the slots are free."""
    body = {**ENDLESS, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as first:
        lines = first.iter_lines()  # closes the connection when it is forgotten
        assert next(lines).startswith("data: {")
        with client.stream("POST", "/v1/completions", json=body) as second:
            others = second.iter_lines()
            assert next(others).startswith("data: {")
            wait_for(server, "retnet_slots_used", [1, 1])
    wait_for(server, "retnet_slots_used", [0, 0])


def test_an_unstreamed_client_leaves(server: RunningServer, client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=ENDLESS, timeout=2)
    wait_for(server, "retnet_slots_used", [0, 0])


def test_streams_are_the_same(client: httpx.Client) -> None:
    body = {"prompt": "Once", "max_tokens": 80, "seed": 5, "ignore_eos": True}
    whole = complete(client, **body)["choices"][0]["text"]
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        parts = [each["choices"][0]["text"] for each in events(response)]
    assert len(parts) > 40 and "".join(parts) == whole


def test_sessions_stay_where_they_are(server: RunningServer, client: httpx.Client) -> None:
    names = [f"stay-{number}" for number in range(8)]
    for name in names:
        make_session(client, name)
    homes = {name: home_of(client, server, name) for name in names}
    assert set(homes.values()) == {0, 1}
    for name in names:
        assert home_of(client, server, name) == homes[name]


def test_sessions_are_known_to_all(client: httpx.Client) -> None:
    """Forks and files, whose new names may belong to the other replica, and the list of all."""
    make_session(client, "known")
    complete(client, prompt="Once upon", max_tokens=9, session_id="known")
    state = client.get("/v1/sessions/known/state").content
    others = ["known-fork", *(f"known-{number}" for number in range(4))]
    assert client.post("/v1/sessions/known/fork", json={"id": others[0]}).status_code == 201
    for name in others[1:]:
        assert client.put(f"/v1/sessions/{name}/state", content=state).status_code == 200
    turn = {"prompt": " a time", "max_tokens": 12, "temperature": 0}
    texts = [complete(client, session_id=name, **turn)["choices"] for name in ["known", *others]]
    assert all(text == texts[0] for text in texts)
    listed = [each["id"] for each in client.get("/v1/sessions").json()["data"]]
    assert {"known", *others} <= set(listed) and len(listed) == len(set(listed))
    assert client.delete("/v1/sessions/known").json()["deleted"]
    assert client.get("/v1/sessions/known").status_code == 404


def test_a_replica_dies(server: RunningServer, client: httpx.Client) -> None:
    """What ran in it fails and says so; all else goes on at once, sessions from their last turn."""
    turns: list[dict[str, Any]] = [
        {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0},
        {"prompt": " and then", "max_tokens": 30, "temperature": 1, "seed": 3, "stop": ["e"]},
        {"prompt": "!", "max_tokens": 20, "temperature": 1, "seed": 4, "logprobs": 3},
    ]
    for name in ("whole", "cut"):
        make_session(client, name)
    expected = [complete(client, session_id="whole", **turn)["choices"] for turn in turns]
    found = [complete(client, session_id="cut", **turns[0])["choices"]]
    make_session(client, "streamed")
    home = home_of(client, server, "streamed")
    names = (f"unstreamed-{number}" for number in range(99))
    unstreamed = next(name for name in names if is_at(client, server, name, home))
    refused: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: refused.append(
            client.post("/v1/completions", json={**ENDLESS, "session_id": unstreamed})
        )
    )
    body = {**ENDLESS, "session_id": "streamed", "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        asking.start()
        wait_for(server, "retnet_slots_used", [2 * (home == 0), 2 * (home == 1)])
        process_of(server, home).kill()
        killed = time.monotonic()
        assert events(response)[-1]["error"]["code"] == "unavailable"
    asking.join()
    assert refused[0].status_code == 503 and refused[0].headers["retry-after"]
    assert refused[0].json()["error"]["type"] == "server_error"
    assert time.monotonic() - killed < 10
    found.append(complete(client, session_id="cut", **turns[1])["choices"])
    for name in ("streamed", unstreamed):
        assert client.get(f"/v1/sessions/{name}").json()["num_tokens"] == 5
        complete(client, prompt="b", max_tokens=3, session_id=name)
    while server.metric("retnet_replicas_up") < 2:
        assert time.monotonic() - killed < PATIENCE_S
        complete(client, prompt="a", max_tokens=3)
    assert process_of(server, home).is_running()
    found.append(complete(client, session_id="cut", **turns[2])["choices"])
    assert found == expected
    assert home_of(client, server, "streamed") == home


def is_at(client: httpx.Client, server: RunningServer, name: str, home: int) -> bool:
    make_session(client, name)
    return home_of(client, server, name) == home


def ends_well(server: RunningServer, end: Callable[[], object]) -> None:
    """What runs is finished, nothing new is taken, and nothing is left behind."""
    begun, answers = processes(server), list[dict[str, Any]]()
    body = {**ENDLESS, "max_tokens": 2000}
    with server.client() as client:
        asking = threading.Thread(target=lambda: answers.append(complete(client, **body)))
        asking.start()
        while sum(server.metrics("retnet_slots_used")) == 0:
            assert asking.is_alive()
        end()
        while client.get("/health").json() != {"status": "draining"}:
            assert asking.is_alive()
        refused = client.post("/v1/completions", json=ENDLESS)
        assert refused.status_code == 503
        asking.join()
    assert server.process.wait(PATIENCE_S) == 0
    assert answers[0]["usage"]["completion_tokens"] == 2000
    _, alive = psutil.wait_procs(begun, timeout=10)
    assert not alive
    assert "Traceback" not in "".join(server.lines)


def test_a_model_that_is_broken(tmp_path: Path) -> None:
    """A replica tells what is wrong in words that can be shown, without frames of its process."""
    save_model(tmp_path / "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = ServeConfig(session_dir=str(tmp_path / "sessions"))

    async def told() -> Any:
        return [each async for each in Replica(str(tmp_path / "tiny"), config).live()]

    [error] = asyncio.run(told())
    assert isinstance(error, ValueError) and "model.safetensors" in str(error)
    assert "\n" not in str(error)


def test_wrong_flags(folder: Path) -> None:
    command = [sys.executable, "-m", "retnet", "serve", "--model", str(folder), "--replicas"]
    for arguments, message in (
        (["0"], "--replicas must be at least 1"),
        (["2"], "--session_dir must name a folder that all replicas"),
    ):
        ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert message in ended.stderr and ended.stderr.count("\n") == 1


def test_ctrl_c(folder: Path, tmp_path: Path) -> None:
    """A terminal tells all processes at once; those of Ray's wait for the server. One replica."""
    sessions = tmp_path / "sessions"
    sessions.mkdir()
    with cluster(folder, sessions, "--replicas", "1", "--ray_address", "local") as server:
        ends_well(server, lambda: os.killpg(server.process.pid, signal.SIGINT))


def test_sigterm(server: RunningServer) -> None:
    """The last one: it ends the server of all the others."""
    ends_well(server, server.process.terminate)
