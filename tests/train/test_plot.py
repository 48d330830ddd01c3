"""Pictures are looked at by people; these tests see that they are there and show what they should.

What a picture has in it is read from the figure before it is saved.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retnet.train import plot
from retnet.train.curves import Curve, LossCurves
from retnet.train.plot import plot_losses, plot_norms

NOTHING = Curve(np.array([]), np.array([]))


def make_run(folder: Path, num_records: int = 60, *, norms: tuple[int, int] | None = None) -> Path:
    """A run with a measurement a step, validations at every tenth."""
    records: list[dict[str, Any]] = [{"kind": "start", "step": 0, "tokens": 0, "elapsed_s": 0.0}]
    for step in range(1, num_records + 1):
        where = {"step": step, "tokens": 1000 * step, "elapsed_s": 60.0 * step}
        losses = {"bits_per_byte": 1.5 + 6 / step, "loss_nats": 1.0 + 4 / step}
        records.append({"kind": "train", **where, **losses})
        if step % 10 == 0 or step == num_records:
            records.append({"kind": "validation", **where, **losses, "whole": step == num_records})
            if norms is not None:
                layers, heads = norms
                values = [[step * (1.0 + head) for head in range(heads)]] * layers
                records.append({"kind": "norms", **where, "outputs": values, "states": values})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    pytest.importorskip("matplotlib")
    drawn: list[Any] = []
    make = plot._figure

    def watched(width: float, height: float) -> Any:
        drawn.append(make(width, height))
        return drawn[-1]

    monkeypatch.setattr(plot, "_figure", watched)
    return drawn


def legend_texts(legend: Any) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("num_records", [1, 60])
def test_one_run(tmp_path: Path, figures: list[Any], num_records: int) -> None:
    run = make_run(tmp_path / "run", num_records)
    plot_losses([run], tmp_path / "loss.png")
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000
    texts = legend_texts(figures[0].axes[0].get_legend())
    assert texts[0] == f"run ({1.5 + 6 / num_records:.3f})"
    assert texts[1] == "training windows"


def test_several_runs(tmp_path: Path, figures: list[Any]) -> None:
    """A colour each, and names that don't become formulas."""
    runs = [make_run(tmp_path / name) for name in ("_first", "$x^$", "third")]
    plot_losses(runs, tmp_path / "loss.png", against="hours", unit="nats")
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("hours", "nats per token")
    assert axes.get_lines()[0].get_xdata()[-1] == pytest.approx(1.0)
    texts = legend_texts(axes.get_legend())
    assert [text.partition(" ")[0] for text in texts[:3]] == ["_first", "$x^$", "third"]
    assert len({line.get_color() for line in axes.get_lines()}) == 3


@pytest.mark.parametrize("names", [[f"run-{i}" for i in range(14)], ["a" * 70, "b" * 30]])
def test_many_or_long_names_stand_beside_the_curves(
    tmp_path: Path, figures: list[Any], names: list[str]
) -> None:
    runs = [make_run(tmp_path / name) for name in names]
    plot_losses(runs, tmp_path / "loss.png")
    (figure,) = figures
    (legend,) = figure.legends
    inside, beside = figure.axes[0].get_window_extent(), legend.get_window_extent()
    assert beside.x0 >= inside.x1
    assert beside.x1 <= figure.bbox.x1
    assert all(len(text) < 50 for text in legend_texts(legend))


@pytest.mark.parametrize(("name", "start"), [("loss.SVG", b"<?xml"), ("picture", b"\x89PNG")])
def test_the_ending_of_the_name_is_the_format(tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    plot_losses([make_run(tmp_path / "run")], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("layers", "columns"), [(1, 1), (3, 3), (4, 4), (6, 6), (11, 6), (12, 6), (24, 8), (32, 8)]
)
def test_panels_fill_their_rows_where_they_can(layers: int, columns: int) -> None:
    assert plot._columns(layers) == columns


@pytest.mark.parametrize(("layers", "columns"), [(1, 1), (2, 2), (11, 6)])
def test_norms(tmp_path: Path, figures: list[Any], layers: int, columns: int) -> None:
    """A panel for each layer's outputs and states, in one range, a line for each head."""
    run = make_run(tmp_path / "run", norms=(layers, 3))
    plot_norms(run, tmp_path / "norms.png", against="steps")
    axes = figures[0].axes
    assert len(axes) == 2 * layers
    assert axes[0].get_title() == "outputs, layer 0"
    assert axes[-1].get_title() == f"states, layer {layers - 1}"
    assert len({each.get_ylim() for each in axes}) == 1
    assert all(len(each.get_lines()) == 3 for each in axes)
    assert axes[0].get_gridspec().ncols == columns
    assert legend_texts(figures[0].legends[0]) == ["head 0", "head 1", "head 2"]


def test_norms_of_many_heads_at_one_time(tmp_path: Path, figures: list[Any]) -> None:
    """A line needs two points: there are dots; the legend names some heads of many."""
    plot_norms(make_run(tmp_path / "run", 1, norms=(2, 40)), tmp_path / "norms.png")
    assert figures[0].axes[0].get_lines()[0].get_marker() == "o"
    texts = legend_texts(figures[0].legends[0])
    assert (len(texts), texts[0], texts[-1]) == (8, "head 0", "head 39")


def test_missing_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'retnet\[plot\]'"):
        plot_losses([make_run(tmp_path / "run")], tmp_path / "loss.png")


def curves(training: list[float], excerpts: list[float]) -> LossCurves:
    parts = [Curve(np.arange(len(part)), np.array(part)) for part in (training, excerpts)]
    return LossCurves(training=parts[0], excerpts=parts[1], whole=NOTHING)


def test_the_range_shows_the_learning() -> None:
    """Not the first steps, and not a run that went astray where others did not."""
    good = curves([8.0, *[2.0] * 99], [2.1])
    lowest, highest = plot._limits([good])
    assert lowest < 2.0 < 2.1 < highest < 3.0
    astray = curves([2.0] * 50 + [30.0] * 50, [25.0])
    assert plot._limits([good, good, astray])[1] < 3.0
    assert plot._limits([astray])[1] > 25
