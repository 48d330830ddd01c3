"""What a study found: tables, lines to draw and remarks, apart from how they are shown."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Fewer seeds tell nothing of the spread between them.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Spread:
    """Measurements of one thing from several seeds: {seed: value}."""

    by_seed: Mapping[int, float]

    @property
    def values(self) -> tuple[float, ...]:
        """The measurements."""
        return tuple(self.by_seed.values())

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int = 3) -> str:
        """ "2.601 ± 0.004", with the number of measurements where there are too few."""
        shown = f"{self.mean:.{digits}f}"
        if self.deviation is not None:
            shown += f" ± {self.deviation:.{digits}f}"
        few = len(self.values)
        return shown if few >= LEAST_SEEDS else f"{shown} ({few} seed{'s' * (few > 1)})"

    def minus(self, other: "Spread") -> "Spread | None":
        """The differences, seed by seed, of the seeds that both have; None where there are none."""
        common = [seed for seed in self.by_seed if seed in other.by_seed]
        if not common:
            return None
        return Spread({seed: self.by_seed[seed] - other.by_seed[seed] for seed in common})


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. columns: headings; rows: cells of text, the first the row's name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> Iterator[str]:
        """Its lines in Markdown."""
        yield f"### {self.title}"
        yield ""
        yield _markdown_row(self.columns)
        yield f"|{'---|' + '---:|' * (len(self.columns) - 1)}"
        yield from map(_markdown_row, self.rows)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points to draw. spread: the standard deviation of each y, or nothing."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawing of lines.

    names: of the places 0, 1, 2 ... on the x axis where these are no numbers: then points are drawn
    without lines between them.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that is claimed or demanded, and whether it was found. value: what was found."""

    claim: str
    value: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a study has to say."""

    title: str
    tables: Sequence[Table]
    panels: Sequence[Panel]
    checks: Sequence[Check] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def markdown(self) -> Iterator[str]:
        """Its lines in Markdown."""
        yield f"## {self.title}"
        for table in self.tables:
            yield ""
            yield from table.markdown()
        if self.checks:
            yield ""
            yield "| claim | found | holds |"
            yield "|---|---|---|"
            for check in self.checks:
                yield f"| {check.claim} | {check.value} | {'yes' if check.holds else 'no'} |"
        for note in self.notes:
            yield ""
            yield note


def check_seeds(
    claim: str,
    spread: Spread | None,
    holds: Callable[[float], bool],
    *,
    digits: int = 3,
    unit: str = "",
) -> list[Check]:
    """Whether something holds for each of at least three seeds; no check for fewer."""
    if spread is None or len(spread.values) < LEAST_SEEDS:
        return []
    value = f"{spread.text(digits)} {unit}".strip()
    return [Check(claim=claim, value=value, holds=all(map(holds, spread.values)))]


def spread_line(name: str, x: Sequence[float], spreads: Sequence[Spread]) -> Line:
    """Means with their deviations."""
    return Line(
        name=name,
        x=list(x),
        y=[spread.mean for spread in spreads],
        spread=[spread.deviation or 0.0 for spread in spreads],
    )
