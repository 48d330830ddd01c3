"""Processes that work for this one: they never get its Ctrl-C, and end where it does."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that are started inside never get Ctrl-C: it is for the one that started them."""
    if sys.platform == "win32":
        yield
        return
    # What multiprocessing starts with the first process would lift the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker(Generic[R]):
    """A call in a new Python process, which imports the function's module for it.

    The process ends with this one, however that ends.

    Attributes:
        connection: what there is something to read from once the call is done: `wait` takes it.
    """

    def __init__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> None:
        # Not forked: other libraries' threads don't survive that.
        context = get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work, args=(theirs, function, args, kwargs), daemon=True
        )
        with without_interrupts():
            self._process.start()
        theirs.close()

    def result(self) -> R:
        """What the call returned; raises what it raised, and OSError where the process died."""
        try:
            outcome: R | Exception = self.connection.recv()
        except EOFError:
            self._process.join()
            raise OSError(
                f"a process ended by itself (exit code {self._process.exitcode}), as it does where "
                "memory is short"
            ) from None
        self._process.join()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def terminate(self) -> None:
        """Ask the process to end."""
        self._process.terminate()

    def end(self, patience_s: float) -> None:
        """Wait until it has ended, but no longer than that."""
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()


def _work(
    connection: "Connection[Any, Any]", function: Callable[..., Any], args: Any, kwargs: Any
) -> None:
    """What the process does."""
    _end_with_parent()
    try:
        outcome = function(*args, **kwargs)
    except Exception as error:
        outcome = error
    connection.send(outcome)


def _end_with_parent() -> None:
    """Send SIGTERM to this process once the one that started it is gone."""
    parent = parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
