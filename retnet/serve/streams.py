"""Server-sent events, and clients that leave."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from retnet.serve.errors import ApiError

_T = TypeVar("_T")

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """A JSON object as an event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode("ascii") + b"\n\n"


class EventStream(Response):
    """Sends events as they come, and stops asking for them when the client has left.

    events: encoded; what it raises as ApiError is the last event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(None, headers=headers)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all, or until the client has left."""
        async with aclosing(self._events):
            await first_of(self._send_all(send), left(receive))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                # Neither the events nor sending them need wait for anything: others have their
                # turn, and it is seen that the client has left.
                await asyncio.sleep(0)
        except ApiError as error:
            await send(
                {"type": "http.response.body", "body": event(error.body()), "more_body": True}
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class ClientLeftError(Exception):
    """There is nobody to answer."""


async def unless_left(request: Request, work: Awaitable[_T]) -> _T:
    """What some work gives; it is cancelled, and ClientLeftError raised, when the client leaves."""
    task: asyncio.Task[_T] = asyncio.ensure_future(work)
    await first_of(task, left(request.receive))
    if task.cancelled():
        raise ClientLeftError
    return task.result()


async def left(receive: Receive) -> None:
    """Returns when the client, whose body has been read, has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def first_of(work: Awaitable[Any], other: Awaitable[Any]) -> None:
    """Until one of the two is done; the other is cancelled. Raises what they raise."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(other)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
