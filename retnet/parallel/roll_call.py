"""Who is still there: every process beats once a second into the store that started them all.

When an exchange fails, a process learns that some other one hangs or is gone, but not which: its
neighbours report each other. The beats tell.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

BEAT_EVERY_S = 1.0

# How long a process may be silent before it counts as gone: others may hold the interpreter busy.
SILENCE_S = 5.0


class RankLostError(RuntimeError):
    """A process of the run is gone, or does not come to where the others wait for it."""


class RollCall:
    """Beats for this process, and can tell which others have stopped beating."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="roll call", daemon=True)
        store.set(f"name/{rank}", f"rank {rank} (process {os.getpid()} on {socket.gethostname()})")
        store.add(f"beats/{rank}", 1)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped.set()
        self._thread.join()

    def absence(self) -> str | None:
        """After a failed exchange: who is missing, in words; None where everyone came as far.

        Takes SILENCE_S at most. Everyone who calls this counts as present from then on.
        """
        try:
            self._store.add(f"failed/{self.rank}", 1)
            silent = self._silent_ranks()
            late = [] if silent else self._unmarked("failed")
            names = [self._store.get(f"name/{rank}").decode() for rank in silent or late]
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return f"the process that started the others (torchrun, or rank 0) is gone: {reason}"
        if not names:
            return None
        listed = ", ".join(names)
        if silent:
            return f"{listed} of {self.size} is gone: killed, or ended by an error of its own"
        return f"{listed} of {self.size} is alive but did not come to where the others waited"

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_EVERY_S):
            try:
                self._store.add(f"beats/{self.rank}", 1)
            except RuntimeError:  # The store is gone: so is whoever would ask.
                return

    def _silent_ranks(self) -> list[int]:
        """The ranks without a beat for SILENCE_S that have not themselves seen a failure."""
        before = [self._store.add(f"beats/{rank}", 0) for rank in range(self.size)]
        silent = [rank for rank in range(self.size) if rank != self.rank]
        deadline = time.monotonic() + SILENCE_S
        while silent and time.monotonic() < deadline:
            time.sleep(BEAT_EVERY_S / 4)
            silent = [
                rank for rank in silent if self._store.add(f"beats/{rank}", 0) == before[rank]
            ]
        return [rank for rank in silent if rank in self._unmarked("failed")]

    def _unmarked(self, mark: str) -> list[int]:
        return [rank for rank in range(self.size) if not self._store.add(f"{mark}/{rank}", 0)]


def connect(rank: int, size: int) -> RollCall:
    """The roll call of processes that `torchrun` started, over a connection of its own."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=False, timeout=timedelta(seconds=30)
    )
    # torchrun may start the processes again after a failure, and keeps its store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return RollCall(PrefixStore(f"retnet/{attempt}", store), rank, size)


@contextmanager
def naming_lost_ranks(roll_call: RollCall | None) -> Iterator[None]:
    """Inside, an exchange that fails raises RankLostError, which says who is missing."""
    try:
        yield
    except RuntimeError as error:
        absence = roll_call.absence() if roll_call and _is_failed_exchange(error) else None
        if absence is None:
            raise
        raise RankLostError(
            f"{absence}. What was saved before is intact: started again, the run goes on from there"
        ) from error


def _is_failed_exchange(error: RuntimeError) -> bool:
    # gloo's errors have no class of their own; each names the file of gloo that it comes from.
    return isinstance(error, dist.DistError) or "gloo" in str(error)
