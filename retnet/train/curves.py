"""What a run's metrics hold, as curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retnet.train.folder import RunFolder, read_records

Against = Literal["tokens", "steps", "hours"]
Unit = Literal["bits", "nats"]

_PLACE: dict[Against, str] = {"tokens": "tokens", "steps": "step", "hours": "elapsed_s"}
_FIELD: dict[Unit, str] = {"bits": "bits_per_byte", "nats": "loss_nats"}


@dataclass(frozen=True)
class Curve:
    """Points in the order of a run: places [N] and values [N, ...]."""

    places: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, kw_only=True)
class LossCurves:
    """A run's losses. Where all validations read everything held out, `excerpts` has them.

    Attributes:
        training: means over the windows between two records.
        excerpts: on a part of what is held out, the same each time.
        whole: on everything held out, after the last step.
    """

    training: Curve
    excerpts: Curve
    whole: Curve

    @property
    def last_validation(self) -> float | None:
        """On everything held out where that was read, else the newest; None where there is none."""
        for curve in (self.whole, self.excerpts):
            if len(curve):
                return float(curve.values[-1])
        return None


@dataclass(frozen=True, kw_only=True)
class NormCurves:
    """Root mean squares of the heads' outputs and states, values [N, L, H]."""

    outputs: Curve
    states: Curve


def loss_curves(run: str | Path, *, against: Against, unit: Unit) -> LossCurves:
    """The losses of a run: a folder of `retnet train`, or a file of metrics.

    Half a line, which a run that was killed may leave, doesn't count. Raises ValueError naming the
    run where nothing was measured yet.
    """
    records = _records(run)

    def curve(kind: str, *, whole: bool = False) -> Curve:
        chosen = [
            record
            for record in records
            if record["kind"] == kind and bool(record.get("whole")) == whole
        ]
        return _curve(chosen, against, _FIELD[unit])

    training = curve("train")
    if not len(training):
        raise ValueError(f"{run} holds no measurements yet")
    excerpts, whole = curve("validation"), curve("validation", whole=True)
    if not len(excerpts):
        excerpts, whole = whole, excerpts
    return LossCurves(training=training, excerpts=excerpts, whole=whole)


def norm_curves(run: str | Path, *, against: Against) -> NormCurves:
    """The norms that a run recorded with `log.norms`; ValueError naming the run if it has none."""
    records = [record for record in _records(run) if record["kind"] == "norms"]
    if not records:
        raise ValueError(f"{run} holds no norms; train with --log.norms true to record them")
    return NormCurves(
        outputs=_curve(records, against, "outputs"), states=_curve(records, against, "states")
    )


def run_names(runs: Sequence[str | Path]) -> list[str]:
    """What to call some runs: their folders' names, with those above where two are alike."""
    folders = [_folder(Path(run)).parts for run in runs]
    for depth in count(1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(set(folders)):
            break
    return names


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running means of [N] over up to a twentieth on each side, as far as there is any.

    At the beginning, where losses fall fast, as much is taken from both sides.
    """
    index = np.arange(len(values))
    before = np.minimum(index, len(values) // 20)
    after = np.minimum(before, index[::-1])
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def _folder(run: Path) -> Path:
    path = run.resolve()
    return path.parent if path.name == RunFolder("").metrics.name else path.with_suffix("")


def _records(run: str | Path) -> list[dict[str, Any]]:
    path = Path(run)
    metrics = RunFolder(path).metrics if path.is_dir() else path
    if not metrics.exists():
        missing = f"there is no {metrics.name} in it" if path.is_dir() else "it is not there"
        raise ValueError(f"{run} is not a run: {missing}; name a folder of retnet train")
    return _without_what_was_repeated(read_records(metrics))


def _without_what_was_repeated(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what came after a step that the run went back to: a log that was only added to."""
    kept: list[dict[str, Any]] = []
    for record in records:
        while kept and kept[-1]["step"] > record["step"]:
            kept.pop()
        kept.append(record)
    return kept


def _curve(records: Sequence[dict[str, Any]], against: Against, field: str) -> Curve:
    place = _PLACE[against]
    known = [record for record in records if {place, field} <= record.keys()]
    places = np.array([record[place] for record in known], dtype=np.float64)
    values = np.array([record[field] for record in known], dtype=np.float64)
    return Curve(places / 3600 if against == "hours" else places, values)
