import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retnet.train.curves import loss_curves, norm_curves, run_names, smooth


def at(step: int, kind: str, **values: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "tokens": 100 * step, "elapsed_s": 36.0 * step, **values}


def training(step: int, bits: float) -> dict[str, Any]:
    return at(step, "train", bits_per_byte=bits, loss_nats=bits / 2)


def validation(step: int, bits: float, *, whole: bool) -> dict[str, Any]:
    return at(step, "validation", bits_per_byte=bits, loss_nats=bits / 2, whole=whole)


def write(folder: Path, records: Iterable[dict[str, Any]], rest: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + rest)
    return folder


@pytest.mark.parametrize(
    ("against", "places"), [("tokens", [200, 400]), ("steps", [2, 4]), ("hours", [0.02, 0.04])]
)
def test_places(tmp_path: Path, against: Any, places: list[float]) -> None:
    run = write(tmp_path / "run", [at(0, "start"), training(2, 3.0), training(4, 2.0)])
    curve = loss_curves(run, against=against, unit="bits").training
    assert curve.places.tolist() == pytest.approx(places)
    assert curve.values.tolist() == [3.0, 2.0]


def test_units(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [training(2, 3.0), validation(2, 4.0, whole=True)])
    curves = loss_curves(run, against="steps", unit="nats")
    assert curves.training.values.tolist() == [1.5]
    assert curves.last_validation == 2.0


def test_the_last_validation_reads_more(tmp_path: Path) -> None:
    """It is not a point of the curve of those before, which read a part of what is held out."""
    parts = [validation(2, 3.5, whole=False), validation(4, 3.0, whole=False)]
    records = [training(2, 3.0), *parts, validation(4, 3.25, whole=True)]
    curves = loss_curves(write(tmp_path / "run", records), against="steps", unit="bits")
    assert curves.excerpts.values.tolist() == [3.5, 3.0]
    assert curves.whole.values.tolist() == [3.25]
    assert curves.last_validation == 3.25


def test_where_little_is_held_out_all_validations_read_it(tmp_path: Path) -> None:
    records = [training(2, 3.0), *(validation(step, 3.5, whole=True) for step in (2, 4))]
    curves = loss_curves(write(tmp_path / "run", records), against="steps", unit="bits")
    assert curves.excerpts.places.tolist() == [2, 4]
    assert len(curves.whole) == 0


def test_half_a_line_does_not_count(tmp_path: Path) -> None:
    """A run that was killed while it wrote, even inside of a character."""
    run = write(tmp_path / "run", [training(2, 3.0)])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"kind": "sample", "text": "ü'.encode()[:-1])
    curves = loss_curves(run, against="steps", unit="bits")
    assert curves.training.places.tolist() == [2]
    assert curves.last_validation is None


def test_steps_that_were_done_again_count_once(tmp_path: Path) -> None:
    """A log that was only added to when its run went back to step 4."""
    before = [training(step, 3.0) for step in (2, 4, 6, 8)]
    run = write(tmp_path / "run", [*before, training(5, 2.0), training(7, 2.0)])
    curve = loss_curves(run, against="steps", unit="bits").training
    assert curve.places.tolist() == [2, 4, 5, 7]
    assert curve.values.tolist() == [3.0, 3.0, 2.0, 2.0]


def test_a_file_of_metrics_will_do(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [training(2, 3.0)])
    assert len(loss_curves(run / "metrics.jsonl", against="steps", unit="bits").training) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere is not a run: it is not there; name a folder of retnet train"),
        ("folder", "folder is not a run: there is no metrics.jsonl in it"),
        ("fresh", "fresh holds no measurements yet"),
        ("begun", "begun holds no measurements yet"),
        ("picture.png", r"picture\.png holds no measurements yet"),
    ],
)
def test_what_can_not_be_drawn_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "fresh", [])
    write(tmp_path / "begun", [at(0, "start")])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    with pytest.raises(ValueError, match=message):
        loss_curves(tmp_path / name, against="steps", unit="bits")


def test_norms(tmp_path: Path) -> None:
    values = {"outputs": [[1.0, 2.0]], "states": [[3.0, 4.0]]}
    run = write(tmp_path / "run", [at(2, "norms", **values), at(4, "norms", **values)])
    norms = norm_curves(run, against="steps")
    assert norms.outputs.places.tolist() == [2, 4]
    assert norms.outputs.values.shape == (2, 1, 2)
    assert norms.states.values[1].tolist() == [[3.0, 4.0]]


def test_a_run_without_norms_is_told_how_to_get_them(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [training(2, 3.0)])
    with pytest.raises(ValueError, match=r"run holds no norms; train with --log\.norms true"):
        norm_curves(run, against="steps")


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["runs/first"], ["first"]),
        (["runs/a", "runs/b/"], ["a", "b"]),
        (["x/run", "y/run"], ["x/run", "y/run"]),
        (["runs/a/metrics.jsonl", "kept/b.jsonl"], ["a", "b"]),
        (["runs/a", "runs/a"], ["a", "a"]),
    ],
)
def test_names(runs: list[str], names: list[str]) -> None:
    assert run_names(runs) == names


def test_smoothing() -> None:
    """A straight line stays as it is but for its end, where only what came before is known."""
    assert smooth(np.array([5.0])).tolist() == [5.0]
    line = np.arange(100.0)
    assert smooth(line)[:-5] == pytest.approx(line[:-5])
    noisy = smooth(np.arange(100) % 2)
    assert abs(noisy[5:] - 0.5).max() < 0.1
