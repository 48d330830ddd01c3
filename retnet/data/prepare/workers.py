"""Units done by several processes, or by this one."""

import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from retnet.data.prepare.encoders import load_encoder
from retnet.data.prepare.parts import Workshop, do_unit
from retnet.data.prepare.units import Part, Unit

_REPORT_BYTES = 1 << 20

# Called with a unit and the bytes of it that were read, again and again ...
Advance = Callable[[Unit, int], object]
# ... and with its parts, once it is done; whether no more units are needed.
Done = Callable[[Unit, tuple[Part, ...]], bool]


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who does units.

    Attributes:
        workers: the number of processes.
        directory: where parts are written.
        tokenizer: the folder of the tokenizer.
        held_out: keys of documents that are left out.
    """

    workers: int
    directory: Path
    tokenizer: Path
    held_out: frozenset[bytes] = frozenset()

    def workshop(self) -> Workshop:
        """What one process works with."""
        encoder = load_encoder(self.tokenizer)
        return Workshop(directory=self.directory, encoder=encoder, held_out=self.held_out)


def do_units(units: Sequence[Unit], crew: Crew, advance: Advance, done: Done) -> None:
    """Do units, begun in their order. Raises what went wrong in one; then the others stop too."""
    count = min(crew.workers, len(units))
    if count > 1:
        with _started(count, crew) as workers:
            _share(deque(units), workers, advance, done)
        return
    workshop = crew.workshop() if units else None
    for unit in units:
        assert workshop is not None
        parts = do_unit(unit, workshop, partial(advance, unit))
        if done(unit, parts):
            return


def _share(units: deque[Unit], workers: "list[_Worker]", advance: Advance, done: Done) -> None:
    """Give each worker a unit, and another whenever it is done with one."""
    busy: dict[Any, tuple[_Worker, Unit]] = {}
    for worker in workers[: len(units)]:
        busy[worker.connection] = (worker, worker.give(units.popleft()))
    while busy:
        for connection in wait(list(busy)):
            worker, unit = busy[connection]
            message = worker.receive()
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, int):
                advance(unit, message)
                continue
            del busy[connection]
            if done(unit, message):
                return
            if units:
                busy[connection] = (worker, worker.give(units.popleft()))


@dataclass(frozen=True)
class _Worker:
    """A process, and how to speak with it."""

    process: SpawnProcess
    connection: Any

    def give(self, unit: Unit) -> Unit:
        """Let it do a unit."""
        with suppress(BrokenPipeError):  # `receive` tells more
            self.connection.send(unit)
        return unit

    def receive(self) -> Any:
        """What it says; an error where it died."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return OSError(
                f"a process ended by itself (exit code {self.process.exitcode}), as it does where "
                "memory is short; run the same command again, with fewer workers"
            )


@contextmanager
def _started(count: int, crew: Crew) -> Iterator[list[_Worker]]:
    """Processes that wait for units; they end with the context."""
    workers: list[_Worker] = []
    try:
        with _without_interrupts():
            for _ in range(count):
                workers.append(_start(crew))
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _start(crew: Crew) -> _Worker:
    # Not forked: other libraries' threads don't survive that.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, crew), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started inside never get Ctrl-C: it is for the one that started them."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: "Connection[Any, Any]", crew: Crew) -> None:
    """What a process does: the units it is given, until nobody gives any."""
    # There are as many processes as are wanted.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        workshop = crew.workshop()
        while True:
            unit = connection.recv()
            with _Reports(connection) as advance:
                parts = do_unit(unit, workshop, advance)
            connection.send(parts)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the process that started this one is gone
    except Exception as error:
        error.add_note(traceback.format_exc())
        connection.send(error)


class _Reports:
    """Tells what was read, not too often."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection, self._size = connection, 0

    def __enter__(self) -> Callable[[int], None]:
        return self._add

    def __exit__(self, *error: object) -> None:
        if not any(error):
            self._connection.send(self._size)

    def _add(self, size: int) -> None:
        self._size += size
        if self._size >= _REPORT_BYTES:
            self._connection.send(self._size)
            self._size = 0
