"""Ctrl-C and SIGTERM as a value that the loop reads between two steps."""

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
    """Whether a signal asked the run to end. signal: the first that came."""

    signal: Signals | None = None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Inside, the first Ctrl-C or SIGTERM only sets `Stop.signal`.

    Another one, at least a second later, acts as it would have outside. Only a program's main
    thread receives signals; in another thread nothing changes.
    """
    stop = Stop()
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
