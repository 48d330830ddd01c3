"""The application in front of replicas: it hands each request on to one of them."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retnet.serve.app import within_limits
from retnet.serve.replicas import Remote, ReplicaLostError, Replicas
from retnet.serve.service import Phase
from retnet.serve.session_routes import MOST_FILES, read_state
from retnet.serve.streams import event, first_of, left
from retnet.serve.writing import unavailable

_SESSION_PATH = re.compile(r"/v1/sessions/([^/]+)")
_WRITING_PATHS = ("/v1/completions", "/v1/chat/completions")
_STATE_PATH = re.compile(r"/v1/sessions/[^/]+/state")

# What of ASGI's scope is plain data.
_SCOPE = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "headers", "client", "server"),
)

_EVENTS = (b"content-type", b"text/event-stream")


def make_front(replicas: Replicas) -> ASGIApp:
    """The application of a server with replicas: its keys, hosts and limits are kept here."""
    front = Front(replicas)
    return within_limits(front, replicas.config, front.count_response)


class Front:
    """Answers for all replicas what concerns them all, and hands on the rest."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._reading = asyncio.Semaphore(MOST_FILES)
        self._registry = CollectorRegistry()
        self._answers = Counter(
            "retnet_responses", "Requests by status.", ["status"], registry=self._registry
        )

    def count_response(self, status: int) -> None:
        """A request was answered."""
        self._answers.labels(status=str(status)).inc()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
        elif scope["path"] == "/health":
            await self._health()(scope, receive, send)
        elif scope["path"] == "/metrics":
            await (await self._metrics(scope))(scope, receive, send)
        else:
            await self._hand_on(scope, receive, send)

    def _health(self) -> Response:
        phase = self._replicas.phase
        status = 200 if phase == Phase.READY else 503
        return JSONResponse({"status": phase.value}, status_code=status)

    async def _metrics(self, scope: Scope) -> Response:
        up = self._replicas.up
        texts = {str(each.index): await _text(each, scope) for each in up}
        gauge = GaugeMetricFamily("retnet_replicas_up", "Replicas at work.", value=len(up))
        own = generate_latest(self._registry) + generate_latest(_Given([gauge]))
        return Response(own + _labelled(texts), media_type=CONTENT_TYPE_LATEST)

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Here, not in the replicas alone: they learn of it a moment later.
        if self._replicas.phase == Phase.DRAINING and scope["path"] in _WRITING_PATHS:
            raise unavailable("the server is about to stop")
        self._replicas.choose(None)  # before all of a body is read in vain
        try:
            body = await self._body(Request(scope, receive))
        except ClientDisconnect:
            return
        await first_of(self._answer(scope, body, send), left(receive))

    async def _body(self, request: Request) -> bytes:
        if request.method == "PUT" and _STATE_PATH.fullmatch(request.url.path):
            async with self._reading:
                return await read_state(request, self._replicas.about.most_state_bytes)
        return await request.body()

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        """Hand a request on to a replica, and to another one where that one never got it."""
        session_id, lost = session_of(scope["path"], body), list[Remote]()
        plain = {name: scope[name] for name in _SCOPE if name in scope}
        while True:
            replica = self._replicas.choose(session_id, lost)
            sending = _Sending(send)
            try:
                async with aclosing(replica.answer(plain, body)) as answer:
                    async for messages in answer:
                        await sending.send(messages)
                return
            except ReplicaLostError as error:
                lost.append(replica)
                if error.has_begun:
                    await sending.fail()
                    return


class _Sending:
    """The messages of an answer on their way, to which there may be no end."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = self._is_stream = False

    async def send(self, messages: list[Message]) -> None:
        """Some more of them."""
        for message in messages:
            if message["type"] == "http.response.start":
                self._has_begun = True
                self._is_stream = any(_is_events(*pair) for pair in message["headers"])
            await self._send(message)

    async def fail(self) -> None:
        """Tell the client that no more will come; ApiError where it can be told in no other way."""
        error = unavailable("the replica that was at work on this is gone; ask again")
        if not (self._has_begun and self._is_stream):
            raise error
        last = event(error.body())
        await self._send({"type": "http.response.body", "body": last, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_events(name: bytes, value: bytes) -> bool:
    return name.lower() == _EVENTS[0] and value.startswith(_EVENTS[1])


def session_of(path: str, body: bytes) -> str | None:
    """The session that a request is about, if it is about one."""
    found = _SESSION_PATH.match(path)
    if found:
        return unquote(found[1])
    name = "id" if path == "/v1/sessions" else "session_id"
    if f'"{name}"'.encode() not in body:
        return None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None  # whoever gets it says what is wrong
    session_id = value.get(name) if isinstance(value, dict) else None
    return session_id if isinstance(session_id, str) else None


async def _text(replica: Remote, scope: Scope) -> str:
    """The metrics of a replica; none if it dies meanwhile."""
    data = b""
    plain = {name: scope[name] for name in _SCOPE if name in scope}
    try:
        async with aclosing(replica.answer(plain, b"")) as answer:
            async for messages in answer:
                data += b"".join(message.get("body", b"") for message in messages)
    except ReplicaLostError:
        return ""
    return data.decode()


def _labelled(texts: Mapping[str, str]) -> bytes:
    """Metrics of several replicas as those of one server, by replica."""
    metrics: dict[str, Metric] = {}
    for index, text in texts.items():
        for family in text_string_to_metric_families(text):
            if family.name.startswith("retnet_responses"):
                continue  # these are counted in front
            new = Metric(family.name, family.documentation, family.type)
            metric = metrics.setdefault(family.name, new)
            for sample in family.samples:
                labels: dict[str, Any] = {"replica": index, **sample.labels}
                metric.add_sample(sample.name, labels, sample.value)
    return generate_latest(_Given(list(metrics.values())))


class _Given(CollectorRegistry):
    """A registry of metrics that are known already."""

    def __init__(self, metrics: list[Metric]) -> None:
        super().__init__()
        self.register(_Collected(metrics))


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)
