"""Streams of events, and clients that leave them."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Message

from retnet.serve.streams import EventStream, event


def test_many_events_at_once_and_a_client_that_leaves() -> None:
    """All that had been written was once sent to nobody, with a line in the log for each event."""
    sent: list[Message] = []

    async def events() -> AsyncGenerator[bytes, None]:
        for number in range(1000):
            yield event({"number": number})

    async def serve() -> None:
        left = asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message)
            if len(sent) == 10:
                asyncio.get_running_loop().call_soon(left.set)

        async def receive() -> Message:
            await left.wait()
            return {"type": "http.disconnect"}

        await EventStream(events())({"type": "http"}, receive, send)

    asyncio.run(serve())
    assert 10 <= len(sent) < 20
