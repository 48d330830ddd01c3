"""The engine in a thread of its own, and what coroutines see of it."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from retnet.serve.engine import Engine, EngineStats
from retnet.serve.request import Finish, Output, Request

_log = logging.getLogger(__name__)


class QueueFullError(RuntimeError):
    """As many requests wait as may."""


class EngineStoppedError(RuntimeError):
    """The engine takes no requests: it was stopped, or a step of it failed."""


@dataclass(eq=False)
class _Stream:
    """Where the outputs of a request go. id: None until the engine has it."""

    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Output] = field(default_factory=asyncio.Queue)
    id: int | None = None
    is_closed: bool = False


class AsyncEngine:
    """Runs an engine in a thread, and streams what comes of requests to coroutines.

    Args:
        engine: used by nobody else from `start` on.
        max_waiting: requests beyond those that have a slot; more are refused.
    """

    def __init__(self, engine: Engine, *, max_waiting: int = 256) -> None:
        self.engine, self.max_waiting = engine, max_waiting
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, _Stream] = {}
        self._num_open = 0
        self._stats = engine.stats()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._is_stopped = False

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End all requests that are still on their way, and the thread."""
        self._is_stopped = True
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped, or a step of it failed."""
        return self._is_stopped

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return self._num_open

    def stats(self) -> EngineStats:
        """How the engine was doing after its last step."""
        return self._stats

    async def stream(self, request: Request) -> AsyncGenerator[Output, None]:
        """What comes of a request, as it comes. Closing it before its end aborts the request.

        Raises:
            QueueFullError: where max_waiting requests wait already.
            EngineStoppedError: after `stop`, or when a step has failed.
            ValueError: for a request that can't be served; see `Engine.add`.
        """
        if self._is_stopped:
            raise EngineStoppedError("the engine has stopped")
        if self._num_open >= self.max_waiting + self._stats.num_slots:
            raise QueueFullError(f"{self.max_waiting} requests wait already; try again later")
        self.engine.check(request)
        stream = _Stream(asyncio.get_running_loop())
        self._num_open += 1
        self._commands.put(lambda: self._add(stream, request))
        try:
            while True:
                output = await stream.outputs.get()
                yield output
                if output.finish is not None:
                    return
        finally:
            self._num_open -= 1
            self._commands.put(lambda: self._close(stream))

    # --- in the thread

    def _add(self, stream: _Stream, request: Request) -> None:
        if not stream.is_closed:
            stream.id = self.engine.add(request)
            self._streams[stream.id] = stream

    def _close(self, stream: _Stream) -> None:
        stream.is_closed = True
        if stream.id is not None and self._streams.pop(stream.id, None) is not None:
            self.engine.abort(stream.id)

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._hand_out(self.engine.step())
                self._stats = self.engine.stats()
        except Exception:
            _log.exception("a step of the engine failed; it serves no more")
            self._end_all(Finish.FAILED)
        else:
            self._end_all(Finish.ABORTED)

    def _end_all(self, finish: Finish) -> None:
        self._is_stopped = True
        while not self._commands.empty():  # what was asked just before the end
            command = self._commands.get()
            if command is not None:
                command()
        self._hand_out([Output(request_id, finish=finish) for request_id in self._streams])

    def _take_commands(self) -> bool:
        """Do what was asked, waiting where there is nothing else to do; False at the end."""
        while not (self._commands.empty() and self.engine.has_work):
            command = self._commands.get()
            if command is None:
                return False
            command()
            self._stats = self.engine.stats()
        return True

    def _hand_out(self, outputs: Sequence[Output]) -> None:
        """Give a step's outputs to those who wait for them, waking each loop once."""
        given: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Output]]] = {}
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if output.finish is not None:
                self._streams.pop(output.request_id, None)
            if stream is not None:
                given.setdefault(stream.loop, []).append((stream, output))
        for loop, items in given.items():
            if not loop.is_closed():  # as where its program ends before the engine does
                loop.call_soon_threadsafe(_put, items)


def _put(items: Sequence[tuple[_Stream, Output]]) -> None:
    """Called in the loop's thread."""
    for stream, output in items:
        stream.outputs.put_nowait(output)
