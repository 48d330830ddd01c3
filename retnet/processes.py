"""Processes that work for this one: they never get its Ctrl-C, and end where it does."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait


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


def end_with_parent() -> None:
    """Send SIGTERM to this process once the one that started it is gone, however it went."""
    parent = parent_process()
    if parent is None:
        raise RuntimeError("no process of ours has started this one")
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
