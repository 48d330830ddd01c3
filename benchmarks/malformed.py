"""Requests that no server can serve, files that are no sessions, and bytes that are no requests."""

import json
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BadRequest:
    """A request, and the statuses that may answer it."""

    content: bytes
    path: str = "/v1/completions"
    method: str = "POST"
    statuses: tuple[int, ...] = (400,)


_BODIES: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe{}",
    b'{"prompt": "\xff"}',
    b"[" * 50_000,
    b'{"prompt": ' + b"[" * 50_000,
    b'{"prompt": {"\\ud800": 1}}',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": 1e999}',
    b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
)
_FIELDS: tuple[dict[str, object], ...] = (
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": [259]},
    {"prompt": [-1]},
    {"prompt": [2**70]},
    {"prompt": [1.5]},
    {"prompt": [[1], "a"]},
    {"prompt": None},
    {"prompt": "a", "max_tokens": -1},
    {"prompt": "a", "max_tokens": 10**9},
    {"prompt": "a", "max_tokens": "5"},
    {"prompt": "a", "max_tokens": True},
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "temperature": 1e30},
    {"prompt": "a", "top_p": 0},
    {"prompt": "a", "top_p": 2},
    {"prompt": "a", "top_k": -2},
    {"prompt": "a", "min_p": 1.5},
    {"prompt": "a", "n": 0},
    {"prompt": "a", "n": 10**6},
    {"prompt": ["a"] * 100, "n": 2},
    {"prompt": "a", "seed": 2**64},
    {"prompt": "a", "logprobs": 1000},
    {"prompt": "a", "stop": ""},
    {"prompt": "a", "stop": ["a"] * 100},
    {"prompt": "a", "logit_bias": {"x": 1}},
    {"prompt": "a", "logit_bias": {"9999": 1}},
    {"prompt": "a", "logit_bias": {"1": 1e9}},
    {"prompt": "a", "repetition_penalty": 0},
    {"prompt": "a", "suffix": "b"},
    {"prompt": "a", "best_of": 5},
    {"prompt": "a", "stream": "yes"},
    {"prompt": "a" * 20_000},
    {"prompt": "a", "session_id": "../../etc/passwd"},
    {"prompt": ["a", "b"], "session_id": "nobody"},
)
_CHATS: tuple[dict[str, object], ...] = (
    {},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [{"content": "a"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
    {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 50},
)
_CHAT, _TOKENS = "/v1/chat/completions", "/detokenize"

BAD_REQUESTS: tuple[BadRequest, ...] = (
    *(BadRequest(body) for body in _BODIES),
    *(BadRequest(json.dumps(fields).encode()) for fields in _FIELDS),
    *(BadRequest(json.dumps(fields).encode(), _CHAT) for fields in _CHATS),
    BadRequest(b'{"prompt": "a", "model": "other"}', statuses=(404,)),
    BadRequest(b'{"prompt": "a", "model": "\\ud800"}', statuses=(404,)),
    BadRequest(b'{"prompt": "a", "session_id": "nobody"}', statuses=(404, 409)),
    BadRequest(json.dumps({"prompt": "a" * 300_000}).encode(), statuses=(413,)),
    BadRequest(b'{"tokens": [-1]}', _TOKENS),
    BadRequest(b'{"tokens": [99999999999999999999]}', _TOKENS),
    BadRequest(b'{"tokens": "a"}', _TOKENS),
    BadRequest(b'{"id": "a b"}', "/v1/sessions"),
    BadRequest(b'{"id": ""}', "/v1/sessions"),
    BadRequest(b"", "/v1/sessions/nobody", "GET", (404,)),
    BadRequest(b"", "/v1/sessions/nobody", "DELETE", (404,)),
    BadRequest(b"", "/v1/sessions/nobody/fork", statuses=(404,)),
    BadRequest(b"", "/v1/sessions/nobody/state", "GET", (404,)),
    BadRequest(b"", "/v1/sessions/%2e%2e/state", "GET", (400, 404)),
    BadRequest(b"", "/nowhere", "GET", (404,)),
    BadRequest(b"", "/v1/completions", "GET", (405,)),
    BadRequest(b"", "/v1/models", "DELETE", (405,)),
    BadRequest(b"", "/v1/models/other", "GET", (404,)),
    BadRequest(b"", "/static/../../secret", "GET", (404,)),
)

BAD_STATES: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: b"",
    lambda data: data[:-1],
    lambda data: data[: len(data) // 2],
    lambda data: data[:8] + b"\x00" * (len(data) - 8),
    lambda data: b"\xff" * 8 + data[8:],
    lambda data: data + b"more",
    lambda data: b"not a file at all",
    lambda data: b"a" * 5_000_000,
)

_POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"

GARBAGE: tuple[bytes, ...] = (
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET /%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    _POST + b"Content-Length: -5\r\n\r\n",
    _POST + b"Content-Length: x\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
