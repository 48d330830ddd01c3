"""Ctrl-C and SIGTERM as a value that the loop reads between two steps."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from signal import Signals
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# `timeout` and some shells send the same signal to the process and to its group, microseconds
# apart.
_SAME_REQUEST_S = 1.0


@dataclass
class Stop:
    """Whether a signal asked the run to end.

    signal: the first that came.
    parent: the process that started this one, where the run must not outlive that; else None.
    """

    signal: Signals | None = None
    parent: int | None = None

    def is_wanted(self) -> bool:
        """Whether the run is to end."""
        if self.signal is None and self.parent not in (None, os.getppid()):
            self.signal = Signals.SIGTERM
        return self.signal is not None


@contextmanager
def stop_on_signals(*, with_parent: bool = False) -> Iterator[Stop]:
    """Inside, the first Ctrl-C or SIGTERM only sets `Stop.signal`.

    Another one, at least a second later, acts as it would have outside. Only a program's main
    thread receives signals; in another thread nothing changes.

    with_parent: whether the end of the process that started this one counts as SIGTERM. What
    torchrun started would go on without it, beside what is started in its place.
    """
    stop = Stop(parent=os.getppid() if with_parent else None)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    received_at = 0.0
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, _frame: FrameType | None) -> None:
        nonlocal received_at
        if stop.signal is None:
            stop.signal = Signals(number)
            received_at = time.monotonic()
        elif time.monotonic() - received_at > _SAME_REQUEST_S:
            restore()
            signal.raise_signal(number)

    for number in _SIGNALS:
        signal.signal(number, receive)
    try:
        yield stop
    finally:
        restore()
