"""Clients that are wrong, slow, gone or malicious: a typed error or a closed connection."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.running import RunningServer, started

KEY = "correct horse"


@pytest.fixture(scope="module")
def strict(model_folder: Path) -> Iterator[RunningServer]:
    """One slot, one place to wait, a key, and little patience."""
    arguments = ["--slots", "1", "--queue", "1", "--max_body_mb", "0.1", "--body_timeout_s", "2"]
    arguments += ["--timeout_s", "5", "--max_prompt_tokens", "1000"]
    with started(model_folder, arguments, {"RETNET_API_KEY": KEY}) as server:
        yield server


def ask(server: RunningServer, body: Any, **headers: str) -> httpx.Response:
    given = {"authorization": f"Bearer {KEY}", **headers}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=given, timeout=30)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def connected(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def head(server: RunningServer, **headers: object) -> bytes:
    lines = [
        "POST /v1/completions HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/sessions", "/tokenizer_info"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic correct horse", "é"])
def test_a_wrong_key(strict: RunningServer, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    response = httpx.get(f"{strict.url}{path}", headers=headers)
    assert response.status_code == 401
    assert error_of(response)["type"] == "authentication_error"
    assert KEY not in "".join(strict.lines)


def test_a_wrong_key_while_the_body_comes(strict: RunningServer) -> None:
    """The connection used to end at once, and was reset where the body was just coming: clients
    were told of that and not of their key."""
    part = b" " * 4000
    for _ in range(50):
        with connected(strict) as link:
            request = head(strict, Content_Length=4 * len(part))
            link.sendall(request.replace(KEY.encode(), b"wrong"))
            for _ in range(4):
                link.sendall(part)
            answer = b""
            while received := link.recv(4096):
                answer += received
            assert answer.startswith(b"HTTP/1.1 401") and b"invalid_api_key" in answer


def test_a_wrong_key_and_no_body(strict: RunningServer) -> None:
    """Nobody waits long for a body that is not asked for."""
    with connected(strict) as link:
        link.sendall(head(strict, Content_Length=100).replace(KEY.encode(), b"wrong"))
        start = time.monotonic()
        assert link.recv(4096).startswith(b"HTTP/1.1 401")
        assert time.monotonic() - start < 5


def test_the_right_key(strict: RunningServer) -> None:
    assert ask(strict, {"prompt": "a", "max_tokens": 1}).status_code == 200
    assert httpx.get(f"{strict.url}/health").status_code == 200


def test_another_name(server: RunningServer) -> None:
    """A page elsewhere whose name leads to 127.0.0.1 can't ask."""
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        response = httpx.get(f"{server.url}/v1/models", headers={"host": host})
        assert response.status_code == 403 and error_of(response)["code"] == "host_not_allowed"
    for host in ("localhost", f"localhost:{server.port}", "[::1]:1"):
        assert httpx.get(f"{server.url}/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
        b"[" * 50_000,
        b'{"prompt": ' + b"[" * 50_000,
        b'{"\\ud800": 1}',
        b'{"prompt": {"\\ud800": 1}}',
        b'{"prompt": "a", "model": "\\ud800"}',
    ],
    ids=lambda content: repr(content[:30]),
)
def test_bodies_that_are_no_requests(server: RunningServer, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
    assert response.status_code in (400, 404), response.text
    error_of(response)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", "/static/../../secret", 404),
        ("GET", "/v1/sessions/nobody", 404),
    ],
)
def test_other_paths(server: RunningServer, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{server.url}{path}")
    assert response.status_code == status
    error_of(response)


def test_bodies_that_are_too_large(strict: RunningServer) -> None:
    """Whether they say so or come in parts."""
    large = json.dumps({"prompt": "a" * 200_000}).encode()

    def parts() -> Iterator[bytes]:
        for start in range(0, len(large), 10_000):
            yield large[start : start + 10_000]

    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    for content in (large, parts()):
        try:
            response = httpx.post(f"{strict.url}/v1/completions", content=content, headers=headers)
        except httpx.NetworkError:
            continue  # the server closed while the body was still coming
        assert response.status_code == 413 and error_of(response)["code"] == "body_too_large"


def test_prompts_that_are_too_long(strict: RunningServer) -> None:
    response = ask(strict, {"prompt": "a" * 1001, "max_tokens": 1})
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


def test_a_body_that_never_ends(strict: RunningServer) -> None:
    """Neither one that stops in the middle nor one that drips holds anything for long."""
    for drips in (False, True):
        with connected(strict) as link:
            link.sendall(head(strict, Content_Length=10_000) + b'{"prompt": "')
            start = time.monotonic()
            link.settimeout(0.3)
            answer = b""
            while time.monotonic() < start + 20:
                try:
                    received = link.recv(4096)
                    answer += received
                    if not received or b"\r\n\r\n" in answer:
                        break
                except TimeoutError:
                    if drips:
                        link.sendall(b"a")
            assert time.monotonic() - start < 10
            assert answer.startswith(b"HTTP/1.1 408")


def test_too_many_bodies_at_once(strict: RunningServer) -> None:
    """Requests that are still being read are bounded too; whoever asks for health is answered."""
    begun = head(strict, Content_Length=10_000) + b"{"
    links = [connected(strict) for _ in range(66)]
    for link in links:
        link.sendall(begun)
    deadline = time.monotonic() + 5
    while (refused := ask(strict, {"prompt": "a", "max_tokens": 1})).status_code != 429:
        assert time.monotonic() < deadline
    assert error_of(refused)["code"] == "too_many_requests"
    assert httpx.get(f"{strict.url}/health").status_code == 200
    for link in links:
        link.close()
    while ask(strict, {"prompt": "a", "max_tokens": 1}).status_code != 200:
        assert time.monotonic() < deadline + 10


def closed_after(link: socket.socket) -> float:
    """Seconds until the server ends the connection without a word."""
    start = time.monotonic()
    with suppress(ConnectionError):
        assert link.recv(4096) == b""
    return time.monotonic() - start


def test_headers_that_never_end(strict: RunningServer) -> None:
    """Many, or one that goes on for ever."""
    for line in (b"X-Long: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        with connected(strict) as link:
            sent = 0
            with suppress(ConnectionError):
                link.sendall(b"GET /health HTTP/1.1\r\nX-First: ")
                while sent < 10_000_000:
                    link.sendall(line)
                    sent += len(line)
            assert sent < 5_000_000  # what the system had taken in before it noticed
    assert httpx.get(f"{strict.url}/health").status_code == 200


@pytest.mark.parametrize("begun", [b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nX: "])
def test_heads_that_do_not_come(strict: RunningServer, begun: bytes) -> None:
    with connected(strict) as link:
        link.sendall(begun)
        assert 1 < closed_after(link) < 10


def test_a_second_head_that_does_not_come(strict: RunningServer) -> None:
    with connected(strict) as link:
        for _ in range(2):
            link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b'"ready"}'):
                answer += link.recv(4096)
        link.sendall(b"GET /hea")
        assert 1 < closed_after(link) < 10


def endless(**changes: Any) -> dict[str, Any]:
    return {"prompt": "a", "max_tokens": 60_000, "ignore_eos": True, "stream": True, **changes}


def test_a_full_queue(strict: RunningServer) -> None:
    """One is served, one waits, the third is told to come again; they end by the time limit."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=strict.url, headers=headers, timeout=30) as client:
        with client.stream("POST", "/v1/completions", json=endless()) as first:
            assert first.status_code == 200
            lines = first.iter_lines()
            next(lines)
            link = connected(strict)
            body = json.dumps(endless(stream=False)).encode()
            link.sendall(head(strict, Content_Length=len(body)) + body)
            wait_until_waiting(strict, 1)
            refused = ask(strict, endless())
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert error_of(refused)["type"] == "rate_limit_error"
            told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            assert told[-1]["error"]["code"] == "timeout"
        response = http.client.HTTPResponse(link)
        response.begin()
        assert response.status == 408
        link.close()


def wait_until_waiting(server: RunningServer, count: int) -> None:
    deadline = time.monotonic() + 10
    headers = {"authorization": f"Bearer {KEY}"}
    while True:
        text = httpx.get(f"{server.url}/metrics", headers=headers).text
        if f"retnet_requests_waiting {float(count)}" in text:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves(server: RunningServer, stream: bool) -> None:
    """Its slot is free at once, whether it has got something yet or waits for all of it."""
    body = json.dumps(endless(stream=stream)).encode()
    request = head(server, Content_Length=len(body)) + body
    with connected(server) as link:
        link.sendall(request)
        server.until("retnet_slots_used", 1.0)
        if stream:
            link.recv(100)
    left = time.monotonic()
    server.until("retnet_slots_used", 0.0)
    assert time.monotonic() - left < 2


def test_a_reader_that_does_not_read(strict: RunningServer) -> None:
    """What it was sent fills the buffers, and then its slot is taken from it."""
    body = json.dumps(endless(logprobs=20)).encode()
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect(("127.0.0.1", strict.port))
    with link:
        link.sendall(head(strict, Content_Length=len(body)) + body)
        deadline = time.monotonic() + 20
        while ask(strict, {"prompt": "a", "max_tokens": 1}).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
