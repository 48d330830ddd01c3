"""One of several copies of a server's application: it is called with requests and yields answers.

What calls it is retnet.serve.front, by way of Ray; it knows of neither.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from starlette.types import Message

from retnet.serve.app import make_app
from retnet.serve.config import ServeConfig
from retnet.serve.service import About, Phase, Service

_log = logging.getLogger(__name__)


class Replica:
    """A model in a process of its own, behind the same application as without replicas.

    directory: that of the checkpoint.
    """

    def __init__(self, directory: str, config: ServeConfig) -> None:
        self._service = Service(directory, config)
        self._app = make_app(self._service, loads=False)
        self._loading = asyncio.Lock()

    async def live(self) -> AsyncGenerator[About | ValueError, None]:
        """Load the model, tell about it, and end with the process: who waits knows of its death.

        What is wrong with the model is told too; raised, it would arrive as an error of Ray's.
        """
        try:
            async with self._loading:
                if not self._service.is_loaded:
                    await self._service.load()
        except (ValueError, OSError) as error:
            yield ValueError(str(error))
            return
        yield self._service.loaded.about()
        await asyncio.Event().wait()

    async def answer(
        self, scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[list[Message], None]:
        """What the application sends for a request, as it comes; closing it ends the request.

        The first list is empty: the request has arrived.
        """
        yield []
        sending = _Sending(body)
        work = asyncio.create_task(self._app(scope, sending.receive, sending.send))
        work.add_done_callback(lambda _: sending.news.set())
        try:
            while sending.messages or not work.done():
                await sending.news.wait()
                messages = sending.take()
                if messages:
                    yield messages
            if error := work.exception():  # the client has been told of it, but not what it was
                _log.error("a request failed", exc_info=error)
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await work

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs."""
        await self._service.drain()

    async def close(self) -> None:
        """End everything; what runs is told."""
        await self._service.close()

    def check_health(self) -> None:
        """Ray replaces the process where this raises."""
        if self._service.phase == Phase.READY and self._service.loaded.engine.is_stopped:
            raise RuntimeError("the engine has stopped")


class _Sending:
    """The two ends of an application: a body to read, and messages that were sent."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.messages: list[Message] = []
        self.news = asyncio.Event()

    async def receive(self) -> Message:
        """The body; a second call never returns, as the application is cancelled at the end."""
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        self.news.set()

    def take(self) -> list[Message]:
        """What was sent since the last time."""
        self.news.clear()
        taken, self.messages = self.messages, []
        return taken
