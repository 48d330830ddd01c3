"""Units done by several processes, or by this one."""

import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Self

from retnet.data.prepare.encoders import Encoder, load_encoder
from retnet.data.prepare.parts import Workshop, do_unit
from retnet.data.prepare.units import Part, Unit
from retnet.processes import without_interrupts

_REPORT_BYTES = 1 << 20
_PATIENCE_S = 10.0

# Called with a unit and the bytes of it that were read, again and again ...
Advance = Callable[[Unit, int], object]
# ... and with its parts, once it is done; whether no more units are needed.
Done = Callable[[Unit, tuple[Part, ...]], bool]


class Crew:
    """Who does units: this process, or others, which are started when there is work for two.

    Use it in a `with`, after which no other process is left. num_workers: how many there may be;
    directory: where parts are written; tokenizer: the folder of the tokenizer.
    """

    def __init__(self, num_workers: int, directory: Path, tokenizer: Path) -> None:
        self._num_workers, self._tokenizer = num_workers, tokenizer
        self._workshop = Workshop(directory=directory, encoder=load_encoder(tokenizer))
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop(at_once=any(error))

    @property
    def encoder(self) -> Encoder:
        """What all use."""
        return self._workshop.encoder

    def leave_out(self, keys: frozenset[bytes]) -> None:
        """Let no unit from here on contain documents with these keys."""
        self._workshop = replace(self._workshop, left_out=keys)
        for worker in self._workers:
            worker.send(keys)

    def do(self, units: Sequence[Unit], advance: Advance, done: Done) -> None:
        """Do units, begun in their order. Raises what went wrong in one."""
        count = min(self._num_workers, len(units))
        if count > 1:
            self._start(count)
            if _share(deque(units), self._workers, advance, done):
                self._stop(at_once=True)
            return
        for unit in units:
            if done(unit, do_unit(unit, self._workshop, partial(advance, unit))):
                return

    def _start(self, count: int) -> None:
        """Have at least so many processes."""
        with without_interrupts():
            while len(self._workers) < count:
                worker = _start(self._workshop.directory, self._tokenizer)
                self._workers.append(worker)
                worker.send(self._workshop.left_out)

    def _stop(self, *, at_once: bool) -> None:
        """End all processes, whether they are done or not."""
        for worker in self._workers:
            worker.connection.close()
            if at_once:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_PATIENCE_S)
            worker.process.kill()
            worker.process.join()
        self._workers.clear()


def _share(units: deque[Unit], workers: "Sequence[_Worker]", advance: Advance, done: Done) -> bool:
    """Give each worker a unit, and another whenever it is done with one.

    Returns whether that ended before all were done.
    """
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
                return True
            if units:
                busy[connection] = (worker, worker.give(units.popleft()))
    return False


@dataclass(frozen=True)
class _Worker:
    """A process, and how to speak with it."""

    process: SpawnProcess
    connection: Any

    def send(self, message: Any) -> None:
        """Tell it something."""
        with suppress(BrokenPipeError):  # `receive` tells more
            self.connection.send(message)

    def give(self, unit: Unit) -> Unit:
        """Let it do a unit."""
        self.send(unit)
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


def _start(directory: Path, tokenizer: Path) -> _Worker:
    # Not forked: other libraries' threads don't survive that.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, directory, tokenizer), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(connection: "Connection[Any, Any]", directory: Path, tokenizer: Path) -> None:
    """What a process does: the units it is given, until nobody is there to give any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So that what is half written is taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # There are as many processes as are wanted.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        workshop = Workshop(directory=directory, encoder=load_encoder(tokenizer))
        while True:
            message = connection.recv()
            if isinstance(message, frozenset):
                workshop = replace(workshop, left_out=message)
                continue
            with _Reports(connection) as advance:
                parts = do_unit(message, workshop, advance)
            connection.send(parts)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the process that started this one is done, or gone
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
