"""The picture of a study. matplotlib is imported where it is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retnet.reproduce.findings import Findings, Panel

_PANELS_IN_A_ROW = 2
_MARKERS = "osD^vPX*<>"


def plot_findings(findings: Findings, image: Path) -> None:
    """Draw the panels of a study as PNG; ImportError naming the extra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'retnet[plot]'") from error
    panels = [panel for panel in findings.panels if panel.lines]
    columns = min(_PANELS_IN_A_ROW, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(6.5 * columns, 4.6 * rows), layout="constrained", dpi=120)
    figure.suptitle(findings.title)
    every = figure.subplots(rows, columns, squeeze=False).flat
    colours = _colours(panels)
    for axes, panel in zip(every, panels, strict=False):
        _draw(axes, panel, colours)
    for axes in every[len(panels) :]:
        axes.remove()
    figure.savefig(image, format="png")


def _colours(panels: Sequence[Panel]) -> dict[str, tuple[Any, str]]:
    """A colour and a marker for each name, the same in every panel."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    return {
        name: (colormaps["tab10"](index % 10), _MARKERS[index % len(_MARKERS)])
        for index, name in enumerate(names)
    }


def _draw(axes: Any, panel: Panel, colours: dict[str, tuple[Any, str]]) -> None:
    for index, line in enumerate(panel.lines):
        colour, marker = colours[line.name]
        beside = 0.5 * (index / max(1, len(panel.lines) - 1) - 0.5) if panel.names else 0.0
        axes.errorbar(
            [x + beside for x in line.x],
            line.y,
            yerr=list(line.spread) or None,
            label=line.name,
            color=colour,
            marker=marker if len(line.x) <= 30 else "",
            markersize=5,
            capsize=3,
            linewidth=0 if panel.names else 1.6,
            elinewidth=1.2,
        )
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.names:
        names = [name.replace(" ", "\n") for name in panel.names]  # side by side they touch
        axes.set_xticks(range(len(names)), names, fontsize=9)
    _scale(axes, panel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _scale(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter

    if not panel.names:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.log_x:
        axes.set_xscale("log", base=2)
        places = sorted({x for line in panel.lines for x in line.x})
        axes.set_xticks(places, [_place(x) for x in places], fontsize=8)
        axes.minorticks_off()
    if panel.log_y:
        axes.set_yscale("log")


def _place(x: float) -> str:
    """A place on an axis: 16384 as 16,384, millions as 1.2M."""
    if x < 100_000:
        return f"{x:,.0f}"
    return f"{x / 1e6:.3g}M"
