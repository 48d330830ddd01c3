"""What a run records: JSON lines always, and the same as TensorBoard's events where asked."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from retnet.train.errors import TrainingError
from retnet.train.folder import RunFolder, read_records

if TYPE_CHECKING:
    from retnet.train.events import EventFile


def require_tensorboard() -> None:
    """TrainingError naming the extra where TensorBoard's package is missing."""
    try:
        import retnet.train.events  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            "tensorboard needs its package: pip install 'retnet[tensorboard]'"
        ) from error


class Records:
    """The records of a run.

    tensorboard: whether to write events too.
    """

    def __init__(self, folder: RunFolder, *, tensorboard: bool) -> None:
        self._folder = folder
        self._has_events = tensorboard
        self._events: EventFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._events is not None:
            self._events.close()

    def begin(self, elapsed_s: float) -> None:
        """Be after what the folder's metrics hold. elapsed_s: what the run has taken so far."""
        if self._has_events:
            from retnet.train.events import EventFile

            recorded = read_records(self._folder.metrics)
            self._events = EventFile(self._folder.path, recorded, time.time() - elapsed_s)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record, which has a kind, a step and elapsed_s; TrainingError on a full disk."""
        self._folder.record(record)
        if self._events is None:
            return
        try:
            self._events.write(record)
        except OSError as error:
            raise TrainingError(
                f"cannot write TensorBoard's events to {str(self._folder.path)!r}: "
                f"{error.strerror}; make room there"
            ) from error
