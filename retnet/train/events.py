"""A run's records as TensorBoard's events. Importing this needs the extra "tensorboard"."""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from torch.utils.tensorboard import RecordWriter
from torch.utils.tensorboard.summary import text

_FILES = "events.out.tfevents.*"

_FIGURES = {
    "train": ("loss_nats", "bits_per_byte", "lr", "grad_norm", "tokens_per_s", "memory_bytes"),
    "validation": ("loss_nats", "bits_per_byte"),
}


class EventFile:
    """A file that TensorBoard reads, in place of those that were in a folder before.

    It begins with the records that are given, all that a run has so far: nothing is there twice
    after a run went on from a checkpoint. Written as it comes, with no thread: an OSError is the
    caller's.

    started_s: when the run began, by `time.time`.
    """

    def __init__(
        self, folder: Path, records: Iterable[Mapping[str, Any]], started_s: float
    ) -> None:
        _empty(sorted(folder.glob(_FILES)))
        # TensorBoard reads files in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._started_s = started_s
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._begin()
        for record in records:
            self._add(record)
        self._file.flush()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record, which has a kind, a step and elapsed_s."""
        self._add(record)
        self._file.flush()

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def _begin(self) -> None:
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A TensorBoard that is open forgets what it has read of the files before.
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=0, session_log=start))

    def _add(self, record: Mapping[str, Any]) -> None:
        values = [Summary.Value(tag=tag, simple_value=x) for tag, x in numbers(record)]
        for tag, content in texts(record):
            values.extend(text(tag, content).value)
        if values:
            self._write(
                Event(
                    wall_time=self._started_s + record["elapsed_s"],
                    step=record["step"],
                    summary=Summary(value=values),
                )
            )

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


def _empty(files: Sequence[Path]) -> None:
    """Take files away. The last stays, empty: a TensorBoard that reads it would not go on."""
    for file in files[:-1]:
        file.unlink()
    for file in files[-1:]:
        os.truncate(file, 0)


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in a record and their tags: "train/lr", "head_states/layer_03/head_01"."""
    kind = record["kind"]
    # The last validation reads more than the others: a curve of its own.
    group = "validation_whole" if record.get("whole") else kind
    for name in _FIGURES.get(kind, ()):
        if record.get(name) is not None:
            yield f"{group}/{name}", record[name]
    if kind == "norms":
        for what in ("outputs", "states"):
            for layer, heads in enumerate(record[what]):
                for head, value in enumerate(heads):
                    yield f"head_{what}/layer_{layer:02}/head_{head:02}", value


def texts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts in a record and their tags, as Markdown that shows them as they are."""
    if record["kind"] == "start":
        settings = {name: record[name] for name in ("train", "model")}
        yield "settings", _verbatim(json.dumps(settings, indent=2))
    if record["kind"] == "sample":
        yield "sample", _verbatim(record["prompt"] + record["text"])


def _verbatim(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.split("\n"))
