import json
import sys
from pathlib import Path
from typing import Any

import pytest

from retnet.train.errors import TrainingError
from retnet.train.folder import RunFolder
from retnet.train.records import Records, require_tensorboard


def record(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "tokens": step, "elapsed_s": 1.0, "loss_nats": 2.0}


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_without_tensorboard_there_are_json_lines(tmp_path: Path) -> None:
    with Records(RunFolder(tmp_path), tensorboard=False) as records:
        records.begin(0.0)
        records.write(record(1))
        records.write(record(2))
    assert lines(RunFolder(tmp_path)) == [record(1), record(2)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_events_have_what_was_recorded_before_too(tmp_path: Path) -> None:
    """Also where an earlier part of the run was without them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path)
    folder.record(record(1))
    with Records(folder, tensorboard=True) as records:
        records.begin(5.0)
        records.write(record(2))
    assert lines(folder) == [record(1), record(2)]
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss_nats")
    assert [(event.step, event.value) for event in events] == [(1, 2.0), (2, 2.0)]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from retnet.train.events import EventFile

    def fail(file: EventFile, values: object) -> None:
        raise OSError(28, "No space left on device")

    with Records(RunFolder(tmp_path), tensorboard=True) as records:
        records.begin(0.0)
        monkeypatch.setattr(EventFile, "write", fail)
        with pytest.raises(TrainingError, match=r"events to .*: No space left on device; make"):
            records.write(record(1))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "retnet.train.events", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(TrainingError, match=r"pip install 'retnet\[tensorboard\]'"):
        require_tensorboard()
