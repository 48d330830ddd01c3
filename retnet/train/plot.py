"""A picture of a run: bits per byte against tokens, on training windows and on held-out text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_metrics(metrics: str | Path, image: str | Path) -> None:
    """Draw a run's metrics (JSON lines) as a PNG.

    Raises ImportError naming the extra where matplotlib is missing, and ValueError where nothing
    was measured yet.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'retnet[plot]'") from error
    training, validation = _curves(Path(metrics))
    if not training:
        raise ValueError(f"{metrics} holds no measurements to plot")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    tokens, bits = zip(*training, strict=True)
    axes.plot(tokens, bits, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(tokens, _smooth(bits), color="tab:blue", linewidth=2, label="training windows")
    if validation:
        _plot_validation(axes, validation)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("bits per byte")
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_ylim(*_limits(bits, [value for _, value in validation]))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(image, dpi=120)


def _plot_validation(axes: Any, validation: Sequence[tuple[int, float]]) -> None:
    tokens, bits = zip(*validation, strict=True)
    axes.plot(tokens, bits, color="tab:orange", marker="o", label="held-out text")
    axes.annotate(
        f"{bits[-1]:.3f}", (tokens[-1], bits[-1]), (-4, 10), textcoords="offset points", ha="right"
    )


def _curves(metrics: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(tokens, bits per byte) of the training records and of the validation records."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]

    def curve(kind: str) -> list[tuple[int, float]]:
        return [
            (record["tokens"], record["bits_per_byte"])
            for record in records
            if record["kind"] == kind
        ]

    return curve("train"), curve("validation")


def _smooth(values: Sequence[float]) -> list[float]:
    """Running means over up to a twentieth of the curve on each side, narrower towards its ends."""
    reach = len(values) // 20
    smoothed = []
    for index in range(len(values)):
        side = min(reach, index, len(values) - 1 - index)
        window = values[index - side : index + side + 1]
        smoothed.append(sum(window) / len(window))
    return smoothed


def _limits(training: Sequence[float], validation: Sequence[float]) -> tuple[float, float]:
    """A range that shows the learning: the first steps, near 8 bits, would squeeze the rest."""
    early = sorted(training)[int(0.95 * (len(training) - 1))]
    lowest, highest = min([*training, *validation]), max([early, *validation])
    margin = 0.05 * (highest - lowest) or 0.1
    return lowest - margin, highest + margin
