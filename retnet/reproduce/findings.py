"""What a study found: tables, lines to draw and remarks, apart from how they are shown."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Fewer seeds tell nothing of the spread between them.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Spread:
    """Some measurements of one thing: their mean and their sample standard deviation."""

    values: tuple[float, ...]

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
        """The differences seed by seed; None where the seeds are not the same number."""
        if len(self.values) != len(other.values):
            return None
        pairs = zip(self.values, other.values, strict=True)
        return Spread(tuple(one - two for one, two in pairs))


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
        yield f"| {' | '.join(self.columns)} |"
        yield f"|{'---|' + '---:|' * (len(self.columns) - 1)}"
        for row in self.rows:
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


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


def collect(results: Sequence[tuple[str, float]]) -> dict[str, Spread]:
    """(name, measurement) pairs as the spread of each name, in the order in which names appear."""
    values: dict[str, list[float]] = {}
    for name, value in results:
        values.setdefault(name, []).append(value)
    return {name: Spread(tuple(found)) for name, found in values.items()}
