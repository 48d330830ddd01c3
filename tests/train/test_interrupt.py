import signal
import subprocess
import sys
import threading

import pytest

from retnet.train import interrupt
from retnet.train.interrupt import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_only_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal is number
    assert signal.getsignal(number) is before


def test_one_request_that_arrives_twice_is_one() -> None:
    """`timeout -s INT` signals its child and then its whole group: that lost the checkpoint."""
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal is signal.SIGINT


def test_a_second_request_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_SAME_REQUEST_S", -1.0)
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def run() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.signal)
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None, before]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no orphans on Windows")
def test_an_orphan_is_asked_to_end() -> None:
    """What torchrun started must not go on beside what is started in its place."""
    program = (
        "import os, sys, time\n"
        "from retnet.train.interrupt import stop_on_signals\n"
        "if os.fork():\n"
        "    time.sleep(1)\n"
        "    os._exit(0)\n"
        "with stop_on_signals(with_parent=True) as stop, stop_on_signals() as other:\n"
        "    before = stop.is_wanted()\n"
        "    time.sleep(3)\n"
        "    print(before, stop.is_wanted(), other.is_wanted())\n"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == (
        "False True False\n"
    )
