"""What a server bears with, around all that it does: keys, hosts, bodies that are too large or too
slow, and readers that don't read."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retnet.serve.config import ServeConfig
from retnet.serve.errors import ApiError

# Reached without a key: the page, which asks for one, and the question whether the server is up.
_OPEN_PATHS = ("/", "/health")
_OPEN_PREFIX = "/static/"

# A state that is put back may be larger than other bodies; its route reads no more than it can be.
_OWN_LIMIT_SUFFIX = "/state"


# Requests that read or wait beside those that the engine has or keeps waiting: each holds a body.
_BODIES_BESIDE = 64

# What is still taken of the body of a request that is refused.
_REST_BYTES, _REST_S = 2**16, 1.0


class SlowReaderError(Exception):
    """A client doesn't take what it is sent."""


class Limits:
    """An ASGI application within the limits of a configuration.

    count_response: told the status of each response.
    """

    def __init__(
        self, app: ASGIApp, config: ServeConfig, count_response: Callable[[int], None]
    ) -> None:
        self.app, self.config, self.count_response = app, config, count_response
        self._most_bodies = config.slots + config.queue + _BODIES_BESIDE
        self._num_bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sending = _Sending(send, self.config.body_timeout_s, self.count_response)
        try:
            headers = dict(scope["headers"])
            self._require_host(headers)
            self._require_key(scope, headers)
            body = _Body(receive, self._most_bytes(scope), self.config.body_timeout_s)
            body.require_length(headers)
            with self._counted(scope):
                await self.app(scope, body.receive, sending.send)
        except ApiError as error:
            if not sending.has_begun:
                await _take_the_rest(receive)
                await sending.error(error)
        except SlowReaderError:
            pass  # Nothing more can be said to it; returning ends the connection.

    @contextmanager
    def _counted(self, scope: Scope) -> Iterator[None]:
        """Inside, a request that may have a body; ApiError where there are too many."""
        has_body = scope["method"] in ("POST", "PUT")
        if has_body and self._num_bodies >= self._most_bodies:
            raise ApiError(
                429,
                f"{self._most_bodies} requests are under way; try again later",
                kind="rate_limit_error",
                code="too_many_requests",
                retry_after_s=1,
            )
        self._num_bodies += has_body
        try:
            yield
        finally:
            self._num_bodies -= has_body

    def _require_host(self, headers: Mapping[bytes, bytes]) -> None:
        allowed = self.config.hosts
        host = _host_name(headers.get(b"host", b"").decode("latin-1"))
        if allowed is not None and host not in allowed:
            raise ApiError(
                403,
                f"this server doesn't answer to the name {host[:100]!r}; start it with "
                "--allowed_hosts to allow it",
                code="host_not_allowed",
            )

    def _require_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        key, path = self.config.api_key, scope["path"]
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX)
        # A browser asks without a key whether another page may ask at all.
        if key is None or is_open or scope["method"] == "OPTIONS":
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Compared in any case, in a time that doesn't tell how much of it is right.
        is_right = hmac.compare_digest(given.strip(), key.encode())
        if kind.lower() != b"bearer" or not is_right:
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
            )

    def _most_bytes(self, scope: Scope) -> int | None:
        if scope["method"] == "PUT" and scope["path"].endswith(_OWN_LIMIT_SUFFIX):
            return None
        return int(self.config.max_body_mb * 1e6)


async def _take_the_rest(receive: Receive) -> None:
    """Read what is left of a body, if that is little and comes soon: a client that is still sending
    when the connection ends may lose the answer with it."""
    num_bytes = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_REST_S):
            while num_bytes < _REST_BYTES:
                message = await receive()
                if not message.get("more_body", False):
                    return
                num_bytes += len(message.get("body", b""))


def _host_name(host: str) -> str:
    """A Host header without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


class _Body:
    """A request's body as it comes, no larger and no slower than allowed."""

    def __init__(self, receive: Receive, most_bytes: int | None, timeout_s: float) -> None:
        self._receive, self._most_bytes = receive, most_bytes
        self._timeout_s, self._num_bytes = timeout_s, 0
        self._deadline_s = asyncio.get_running_loop().time() + timeout_s
        self._is_whole = False

    def require_length(self, headers: Mapping[bytes, bytes]) -> None:
        """ApiError for a body that says it is too large."""
        stated = headers.get(b"content-length", b"0")
        if self._most_bytes is not None and stated.isdigit() and int(stated) > self._most_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part, and after the last one the news that the client has left."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline_s):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408,
                f"the body took longer than {self._timeout_s:g} s to arrive",
                code="body_timeout",
            ) from None
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._most_bytes is not None and self._num_bytes > self._most_bytes:
                raise self._too_large()
        return message

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than the {self._most_bytes:,} bytes that this server reads",
            code="body_too_large",
        )


class _Sending:
    """What is sent to a client that has to take it."""

    def __init__(self, send: Send, timeout_s: float, count_response: Callable[[int], None]) -> None:
        self._send, self._timeout_s, self._count_response = send, timeout_s, count_response
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """Send a part of the response; SlowReaderError where the client doesn't take it."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._count_response(message["status"])
        await self._in_time(self._send(message))

    async def error(self, error: ApiError) -> None:
        """The whole of a response."""
        body = error.encoded()
        headers = {**error.headers(), "content-length": str(len(body)), "connection": "close"}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    async def _in_time(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await sending
        except TimeoutError:
            raise SlowReaderError from None
