"""What comes of a client's request: the pieces of all its texts, as they come or together."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from retnet.checkpoint import Conversation
from retnet.serve.metrics import Metrics
from retnet.serve.request import Request
from retnet.serve.service import Loaded
from retnet.serve.turns import conversation_after
from retnet.serve.writing import Piece, write

# A choice and a piece of its text.
Pieces = AsyncGenerator[tuple[int, Piece], None]

# Pieces that may wait for a slow reader, of all choices together, before writing waits for it.
_MOST_HELD = 256


class Answering:
    """Asks the engine of a loaded model, within a deadline (seconds on the loop's clock)."""

    def __init__(self, loaded: Loaded, metrics: Metrics, deadline_s: float) -> None:
        self._loaded, self._metrics, self._deadline_s = loaded, metrics, deadline_s

    async def all_of(self, requests: Sequence[Request]) -> Pieces:
        """The pieces of several requests at once; the first failure ends all."""
        if len(requests) == 1:
            async with aclosing(self._write(requests[0])) as pieces:
                async for piece in pieces:
                    yield 0, piece
            return
        held: asyncio.Queue[tuple[int, Piece] | BaseException] = asyncio.Queue(_MOST_HELD)
        tasks = [
            asyncio.create_task(_pump(index, self._write(request), held))
            for index, request in enumerate(requests)
        ]
        num_open = len(tasks)
        try:
            while num_open:
                item = await held.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                num_open -= item[1].finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def in_session(
        self, session_id: str, make: Callable[[Conversation], Awaitable[tuple[Request, int]]]
    ) -> Pieces:
        """The pieces of one request that goes on in a session, which is kept before the last.

        make: the request, given what was there, and how many of its tokens are new.
        """
        loaded = self._loaded
        async with loaded.sessions.turn(session_id) as turn:
            request, num_new = await make(turn.conversation)
            given: list[Piece] = []
            async with aclosing(self._write(request, num_new)) as pieces:
                async for piece in pieces:
                    given.append(piece)
                    if piece.finish_reason is None:
                        yield 0, piece
            # Now that its slot is free: what was returned may have to be read again in one.
            after = conversation_after(loaded.engine, loaded.tokenizer, given, self._deadline_s)
            await turn.commit(await after)
            yield 0, given[-1]

    def _write(self, request: Request, num_new: int | None = None) -> AsyncGenerator[Piece, None]:
        loaded = self._loaded
        pieces = write(loaded.engine, loaded.tokenizer, request, self._deadline_s)
        return self._metrics.observed(pieces, len(request.prompt) if num_new is None else num_new)


async def _pump(
    index: int,
    pieces: AsyncGenerator[Piece, None],
    held: "asyncio.Queue[tuple[int, Piece] | BaseException]",
) -> None:
    try:
        async with aclosing(pieces) as source:
            async for piece in source:
                await held.put((index, piece))
    except Exception as error:
        await held.put(error)
