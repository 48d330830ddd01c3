"""Pictures: the losses of some runs, and the norms of one run's heads.

matplotlib is imported where a picture is drawn, so that runs go without it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retnet.train.curves import (
    Against,
    Curve,
    LossCurves,
    Unit,
    loss_curves,
    norm_curves,
    run_names,
    smooth,
)

_PLACES: dict[Against, str] = {
    "tokens": "tokens trained on",
    "steps": "steps",
    "hours": "hours",
}
_UNITS: dict[Unit, str] = {"bits": "bits per byte", "nats": "nats per token"}

# The curves leave the upper right free, but for no more or longer names than that.
_MOST_NAMES_INSIDE, _LONGEST_NAME_INSIDE = 4, 25
_LONGEST_NAME = 40
_MOST_HEADS = 8
_DOTS_PER_INCH = 120

_TRAINING: dict[str, Any] = {"linewidth": 1.8}
_EXCERPTS: dict[str, Any] = {"linestyle": ":", "marker": "o", "markersize": 5, "zorder": 3}
_WHOLE: dict[str, Any] = {
    "linestyle": "",
    "marker": "D",
    "markersize": 7,
    "markeredgecolor": "black",
    "zorder": 4,
}


def plot_losses(
    runs: Sequence[str | Path],
    image: str | Path,
    *,
    against: Against = "tokens",
    unit: Unit = "bits",
) -> None:
    """Draw the losses of some runs, each a folder or a file of metrics, in one picture.

    Each run has a line for the windows that it trains on, and points for what is held out. Raises
    ImportError naming the extra where matplotlib is missing, and ValueError naming the run that is
    not there or has measured nothing yet.
    """
    curves = [loss_curves(run, against=against, unit=unit) for run in runs]
    names = [_shortened(name) for name in run_names(runs)]
    is_inside = len(runs) <= _MOST_NAMES_INSIDE and max(map(len, names)) <= _LONGEST_NAME_INSIDE
    figure = _figure(8 if is_inside else 11, 5)
    axes = figure.subplots()
    colours = _colours(len(runs))
    for curve, colour in zip(curves, colours, strict=True):
        _draw_losses(axes, curve, colour)
    _label_places(axes, against)
    axes.set_ylabel(_UNITS[unit])
    axes.set_ylim(*_limits(curves))
    axes.grid(alpha=0.3)
    entries = [*_run_entries(names, curves, colours), *_style_entries(curves)]
    where, place = (axes, "upper right") if is_inside else (figure, "outside right upper")
    legend = where.legend(
        *zip(*entries, strict=True), loc=place, fontsize=9, title="run (last validation)"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may have dollars in it
    figure.savefig(image, format=_format(image))


def plot_norms(run: str | Path, image: str | Path, *, against: Against = "tokens") -> None:
    """Draw the norms of a run's heads: two panels for each layer, a line for each head.

    Raises as `plot_losses` does, and where the run has not recorded any norms.
    """
    norms = norm_curves(run, against=against)
    num_layers, num_heads = norms.outputs.values.shape[1:]
    columns = _columns(num_layers)
    rows = -(-num_layers // columns)
    figure = _figure(1.6 + 1.9 * columns, 0.8 + 2 * 1.7 * rows)
    panels = figure.subplots(2 * rows, columns, sharex=True, squeeze=False)
    colours = _shades(num_heads)
    for name, curve, block in (
        ("outputs", norms.outputs, panels[:rows]),
        ("states", norms.states, panels[rows:]),
    ):
        _draw_norms(block, name, curve, colours, against)
    figure.supxlabel(_PLACES[against], fontsize=10)
    figure.supylabel("root mean square", fontsize=10)
    lines = panels[0, 0].get_lines()
    shown = np.unique(np.linspace(0, num_heads - 1, min(num_heads, _MOST_HEADS)).astype(int))
    heads = {f"head {head}": lines[head] for head in shown}
    figure.legend(list(heads.values()), list(heads), loc="outside right upper", fontsize=9)
    figure.savefig(image, format=_format(image))


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'retnet[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained", dpi=_DOTS_PER_INCH)


def _format(image: str | Path) -> str:
    return Path(image).suffix.removeprefix(".").lower() or "png"


def _colours(count: int) -> list[Any]:
    """Colours that are told apart, as far as so many can be."""
    from matplotlib import colormaps

    if count <= 10:
        return [colormaps["tab10"](index) for index in range(count)]
    return list(colormaps["turbo"](np.linspace(0.02, 0.98, count)))


def _shades(count: int) -> list[Any]:
    """Colours in an order."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.9, count)))


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _draw_losses(axes: Any, curves: LossCurves, colour: Any) -> None:
    training = curves.training
    axes.plot(training.places, training.values, color=colour, alpha=0.2, linewidth=1)
    axes.plot(training.places, smooth(training.values), color=colour, **_TRAINING)
    for curve, style in ((curves.excerpts, _EXCERPTS), (curves.whole, _WHOLE)):
        axes.plot(curve.places, curve.values, color=colour, **style)


def _run_entries(
    names: Sequence[str], curves: Sequence[LossCurves], colours: Sequence[Any]
) -> Iterator[tuple[Any, str]]:
    """Lines of the legend: a run's colour, its name and its last validation."""
    from matplotlib.lines import Line2D

    for name, curve, colour in zip(names, curves, colours, strict=True):
        last = "" if curve.last_validation is None else f" ({curve.last_validation:.3f})"
        yield Line2D([], [], color=colour, linewidth=4), name + last


def _style_entries(curves: Sequence[LossCurves]) -> Iterator[tuple[Any, str]]:
    """Lines of the legend: what is drawn how."""
    from matplotlib.lines import Line2D

    yield Line2D([], [], color="grey", **_TRAINING), "training windows"
    if any(len(curve.excerpts) for curve in curves):
        yield Line2D([], [], color="grey", **_EXCERPTS), "held-out text"
    if any(len(curve.whole) for curve in curves):
        yield Line2D([], [], color="grey", **_WHOLE), "all held-out text"


def _label_places(axes: Any, against: Against) -> None:
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    axes.set_xlabel(_PLACES[against])
    form = {"tokens": EngFormatter(), "steps": StrMethodFormatter("{x:,.0f}")}.get(against)
    if form is not None:
        axes.xaxis.set_major_formatter(form)


def _columns(num_layers: int) -> int:
    """Panels side by side: as many as fill all rows, if that can be."""
    even = [count for count in range(8, 2, -1) if num_layers % count == 0]
    return next(iter(even), min(num_layers, 6))


def _draw_norms(
    block: Any, name: str, curve: Curve, colours: Sequence[Any], against: Against
) -> None:
    """Draw values [N, L, H] into panels, one a layer, all with one range."""
    num_layers, columns = curve.values.shape[1], block.shape[1]
    positive = curve.values[curve.values > 0]
    for layer, axes in enumerate(block.flat):
        if layer >= num_layers:
            axes.remove()
            continue
        for head, colour in enumerate(colours):
            mark = "o" if len(curve) == 1 else ""
            axes.plot(curve.places, curve.values[:, layer, head], color=colour, marker=mark)
        _label_places(axes, against)
        axes.set_xlabel("")
        axes.locator_params(axis="x", nbins=3)
        axes.set_title(f"{name}, layer {layer}", fontsize=9)
        axes.set_yscale("log")
        if len(positive):
            axes.set_ylim(positive.min() / 1.5, positive.max() * 1.5)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8, labelleft=layer % columns == 0)
        axes.tick_params(labelbottom=layer >= num_layers - columns)


def _limits(curves: Sequence[LossCurves]) -> tuple[float, float]:
    """A range that shows the learning: the first steps, near 8 bits, would squeeze the rest, and so
    would one run that went astray."""
    lowest = min(float(np.min(values)) for curve in curves for values in _seen(curve))
    highs = [max(float(np.max(values)) for values in _seen(curve)) for curve in curves]
    highest = min(max(highs), lowest + 2 * (float(np.median(highs)) - lowest))
    margin = 0.05 * (highest - lowest) or 0.1
    return lowest - margin, highest + margin


def _seen(curves: LossCurves) -> Iterator[Any]:
    """The values of a run that a picture should have room for."""
    training = curves.training.values
    yield np.quantile(training, [0.0, 0.95], method="lower")
    for curve in (curves.excerpts, curves.whole):
        if len(curve):
            yield curve.values
