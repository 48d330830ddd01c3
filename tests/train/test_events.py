"""What TensorBoard itself reads in a run's events."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retnet.train.events import EventFile

TRAIN = {"kind": "train", "loss_nats": 2.5, "lr": 1e-3, "memory_bytes": None, "num_steps": 9}
NORMS = {"kind": "norms", "outputs": [[1.0, 2.0]], "states": [[3.0, 4.0]]}


def at(step: int, record: dict[str, Any]) -> dict[str, Any]:
    return {"step": step, "tokens": 10 * step, "elapsed_s": 2.0 * step, **record}


def validation(step: int, bits: float, whole: bool) -> dict[str, Any]:
    values = {"kind": "validation", "loss_nats": bits, "bits_per_byte": bits, "whole": whole}
    return at(step, values)


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def points(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_records_are_scalars_and_texts(tmp_path: Path) -> None:
    start = at(0, {"kind": "start", "train": {"steps": 9}, "model": {"d_model": 32}})
    file = EventFile(tmp_path, [start], started_s=1000.0)
    sample = at(4, {"kind": "sample", "prompt": "Once ", "text": "*upon*\na time"})
    last = [validation(4, 3.0, False), validation(4, 3.25, True), at(4, NORMS), sample]
    for record in (at(2, TRAIN), at(4, TRAIN), *last):
        file.write(record)
    file.close()
    found = read(tmp_path)
    assert points(found, "train/loss_nats") == [(2, 2.5), (4, 2.5)]
    assert [event.wall_time for event in found.Scalars("train/lr")] == [1004.0, 1008.0]
    assert points(found, "validation/bits_per_byte") == [(4, 3.0)]
    assert points(found, "validation_whole/bits_per_byte") == [(4, 3.25)]
    assert points(found, "head_outputs/layer_00/head_01") == [(4, 2.0)]
    assert points(found, "head_states/layer_00/head_00") == [(4, 3.0)]
    assert "train/memory_bytes" not in found.Tags()["scalars"]
    (shown,) = found.Tensors("sample/text_summary")
    assert shown.tensor_proto.string_val == [b"    Once *upon*\n    a time\n"]
    assert b'"steps": 9' in found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


def test_a_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    """The run had come to step 6 and goes on from step 4, twice: step 6 is there once.

    Also in a TensorBoard that was open all the time.
    """
    file = EventFile(tmp_path, [], started_s=0.0)
    for step in (2, 4, 6):
        file.write(at(step, TRAIN))
    file.close()
    open_since_then = read(tmp_path)
    for loss in (2.25, 2.0):
        file = EventFile(tmp_path, [at(2, TRAIN), at(4, TRAIN)], started_s=0.0)
        file.write(at(6, {**TRAIN, "loss_nats": loss}))
        file.close()
        expected = [(2, 2.5), (4, 2.5), (6, loss)]
        assert points(read(tmp_path), "train/loss_nats") == expected
        open_since_then.Reload()
        assert points(open_since_then, "train/loss_nats") == expected
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert (len(sizes), sizes[0]) == (2, 0)
