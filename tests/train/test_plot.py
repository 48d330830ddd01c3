import json
import sys
from pathlib import Path

import pytest

from retnet.train.plot import _limits, _smooth, plot_metrics


def write_metrics(path: Path, num_records: int, with_validation: bool = True) -> None:
    records: list[dict[str, object]] = [{"kind": "start", "step": 0, "tokens": 0}]
    for step in range(1, num_records + 1):
        bits = 1.5 + 6 / step
        records.append({"kind": "train", "tokens": 1000 * step, "bits_per_byte": bits})
    if with_validation:
        records.append({"kind": "validation", "tokens": 9000, "bits_per_byte": 2.0})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(("num_records", "with_validation"), [(1, False), (60, True)])
def test_draws_a_picture(tmp_path: Path, num_records: int, with_validation: bool) -> None:
    pytest.importorskip("matplotlib")
    write_metrics(tmp_path / "metrics.jsonl", num_records, with_validation)
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000


def test_nothing_measured_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_metrics(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="holds no measurements"):
        plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


def test_missing_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'retnet\[plot\]'"):
        plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


def test_smoothing_keeps_the_ends_and_straight_lines() -> None:
    assert _smooth([5.0]) == [5.0]
    line = [float(index) for index in range(100)]
    assert _smooth(line) == pytest.approx(line)
    noisy = _smooth([float(index % 2) for index in range(100)])
    assert all(abs(value - 0.5) < 0.1 for value in noisy[5:-5])


def test_the_range_shows_the_learning() -> None:
    lowest, highest = _limits([8.0, *[2.0] * 99], [2.1])
    assert lowest < 2.0 < 2.1 < highest < 3.0
