"""Replicas of a model: which of them are there, and which a request goes to.

What is called here as a handle is Ray Serve's DeploymentHandle of a retnet.serve.replica.Replica.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from starlette.types import Message

from retnet.serve.config import ServeConfig
from retnet.serve.service import About, Phase
from retnet.serve.streams import first_of
from retnet.serve.writing import unavailable

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_CLOSE_S = 10.0


class ReplicaLostError(Exception):
    """A replica is gone. has_begun: whether it was at work on the request by then."""

    def __init__(self, index: int, has_begun: bool) -> None:
        super().__init__(f"replica {index} is gone")
        self.has_begun = has_begun


class Remote:
    """A replica in a process somewhere, and again in another one when that dies.

    index: its number, which outlives the process.
    handle: to call it by; a call waits until there is a process.
    """

    def __init__(self, index: int, handle: Any) -> None:
        self.index = index
        self._handle, self._streaming = handle, handle.options(stream=True)
        self.about: About | None = None
        self.num_open = self.num_taken = 0
        self.up, self._gone = asyncio.Event(), asyncio.Event()

    async def watch(self) -> None:
        """Know whether it is there, as long as this runs.

        Raises:
            ValueError: for a model that can't be loaded, the first time; later that is tried again.
            ConnectionError: where there never was a process, or it died while it loaded.
        """
        while True:
            try:
                async for told in self._streaming.live.remote():
                    if isinstance(told, ValueError):
                        raise told
                    self.about = told
                    self._gone = asyncio.Event()
                    self.up.set()
            except Exception as error:
                if self.about is None:
                    raise _first_failure(self.index, error) from error
                _log.warning(
                    "replica %d is gone and is being replaced: %s", self.index, type(error).__name__
                )
            finally:
                self.up.clear()
                self._gone.set()
            await asyncio.sleep(_RETRY_S)

    async def answer(
        self, scope: dict[str, Any], body: bytes
    ) -> AsyncGenerator[list[Message], None]:
        """What it sends for a request; closing it earlier ends the request there.

        Raises:
            ReplicaLostError: where its process dies before the end.
        """
        self.num_open += 1
        self.num_taken += 1
        has_begun = is_over = False
        call = self._streaming.answer.remote(scope, body)
        try:
            await self._arrival(call)
            has_begun = True
            async for messages in call:
                yield messages
            is_over = True
        except Exception as error:
            is_over = True
            raise ReplicaLostError(self.index, has_begun) from error
        finally:
            self.num_open -= 1
            if not is_over:
                call.cancel()

    async def _arrival(self, call: Any) -> None:
        """Until a call has reached the process. It would wait for the next one if this one died."""
        arrival = asyncio.ensure_future(anext(call))
        await first_of(arrival, self._gone.wait())
        if arrival.cancelled():
            call.cancel()
            raise ConnectionError

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs."""
        await self._unless_gone(self._handle.drain.remote)

    async def close(self) -> None:
        """End everything; what runs is told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._unless_gone(self._handle.close.remote)

    async def _unless_gone(self, call: Callable[[], Any]) -> None:
        if self.up.is_set():
            with suppress(Exception):  # it died of itself meanwhile
                await first_of(_result(call()), self._gone.wait())


class Replicas:
    """All replicas of a model: a service like that of one process, retnet.serve.service.Service."""

    def __init__(self, handles: Sequence[Any], config: ServeConfig) -> None:
        self.config = config
        self._all = [Remote(index, handle) for index, handle in enumerate(handles)]
        self._watches: list[asyncio.Task[None]] = []
        self._phase = Phase.LOADING

    @property
    def phase(self) -> Phase:
        """How far they have come; loading also when all are being replaced."""
        is_ready = self._phase == Phase.READY
        return Phase.LOADING if is_ready and not self.up else self._phase

    @property
    def up(self) -> list[Remote]:
        """Those that can be used."""
        return [each for each in self._all if each.up.is_set()]

    @property
    def about(self) -> About:
        """What there is to tell of each."""
        about = self._all[0].about
        assert about is not None, "known as soon as they are loaded"
        return about

    @property
    def is_loaded(self) -> bool:
        """Whether all have been loaded."""
        return all(each.about is not None for each in self._all)

    def choose(self, session_id: str | None, lost: Collection[Remote] = ()) -> Remote:
        """The replica that holds a session, or the one with the fewest open requests; ApiError 503
        where there is none.

        When the one that holds a session is gone, it is another one, the same for all requests of
        that session, until it is back. (Of all replicas it is the one with the highest hash, so
        the sessions of the others stay where they are.)

        lost: those that were tried already.
        """
        there = [each for each in self.up if each not in lost]
        if self._phase == Phase.LOADING:
            raise unavailable("the model is still being loaded")
        if not there:
            raise unavailable("no replica of the model is up; they are being replaced")
        if session_id is not None:
            return max(there, key=lambda each: _weight(session_id, each.index))
        return min(there, key=lambda each: (each.num_open, each.num_taken))

    async def load(self) -> None:
        """Wait until all are there. Raises what loading a model does."""
        self._watches = [asyncio.create_task(each.watch()) for each in self._all]
        for each in self._all:
            failed = asyncio.wait(self._watches, return_when=asyncio.FIRST_COMPLETED)
            await first_of(each.up.wait(), failed)
            for watch in self._watches:
                if watch.done():
                    watch.result()
        if self._phase == Phase.LOADING:
            self._phase = Phase.READY

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs, as long as `drain_s` says."""
        self._phase = Phase.DRAINING
        await asyncio.gather(*(each.drain() for each in self._all))

    async def close(self) -> None:
        """End everything."""
        self._phase = Phase.DRAINING
        await asyncio.gather(*(each.close() for each in self._all))
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)


def _first_failure(index: int, error: Exception) -> Exception:
    if isinstance(error, ValueError):
        return error
    return ConnectionError(f"replica {index} can't be started: {type(error).__name__}")


def _weight(session_id: str, index: int) -> bytes:
    return blake2b(f"{index} {session_id}".encode(), digest_size=8).digest()


async def _result(call: Any) -> None:
    await call
