"""Tables 5 and 6: models that differ in one thing, trained alike and scored on several texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retnet.reproduce.budgets import LANGUAGE, LanguageBudget
from retnet.reproduce.cells import Cell, Values
from retnet.reproduce.findings import (
    LEAST_SEEDS,
    Check,
    Findings,
    Line,
    Panel,
    Spread,
    Table,
    collect,
)
from retnet.reproduce.language_cells import in_turn, language_cell, language_texts
from retnet.reproduce.models import ARCHITECTURES, ablations, variant
from retnet.reproduce.paper import TABLE_5, TABLE_6
from retnet.reproduce.plot import points
from retnet.reproduce.study import Ask, Records, Study, results, slug

# Ours, beside the paper's rows: decays for bytes, where the last few tokens matter most.
_WIDE = {"RetNet, decays from 1/2": {"decay": "wide"}}

_BASE = "RetNet"


def _architectures(_: LanguageBudget) -> dict[str, Any]:
    return ARCHITECTURES | _WIDE


def _ablations(budget: LanguageBudget) -> dict[str, Any]:
    return ablations(budget.model["num_heads"])


def _cells(variants: Callable[[LanguageBudget], dict[str, Any]], ask: Ask) -> dict[str, list[Cell]]:
    """The cells of each variant, one a seed."""
    budget = LANGUAGE[ask.budget]
    return {
        name: [
            language_cell(slug(name), variant(budget.model, changes), seed, ask)
            for seed in ask.seeds
        ]
        for name, changes in variants(budget).items()
    }


def _find(
    title: str,
    variants: Callable[[LanguageBudget], dict[str, Any]],
    paper: Mapping[str, Sequence[float]],
    ask: Ask,
    records: Records,
) -> Findings | None:
    budget = LANGUAGE[ask.budget]
    found = {name: results(cells, records) for name, cells in _cells(variants, ask).items()}
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return None
    windows = _bits(found, budget.sets, "windows")
    tables = [
        _bits_table(found, windows, budget.sets),
        _difference_table(windows, budget.sets, paper),
    ]
    carried = _bits(found, budget.sets, "carried")
    if carried:
        tables.append(_carried_table(carried, budget.sets))
    sizes = [result["parameters"] for rows in found.values() for _, result in rows]
    apart = 100 * (max(sizes) / min(sizes) - 1)
    return Findings(
        title=title,
        tables=tables,
        panels=[_curves(found), _points(windows, budget.sets)],
        checks=[
            Check(
                claim="parameters differ by at most 2 %",
                value=f"{apart:.2f} %",
                holds=apart <= 2,
            ),
            *_order_checks(windows, budget.sets, paper),
        ],
        notes=_notes(budget),
    )


def _bits(
    found: Mapping[str, Sequence[tuple[Values, Values]]], sets: Mapping[str, str], protocol: str
) -> dict[str, dict[str, Spread]]:
    """heading of the set -> model -> its bits per byte, over the seeds."""
    measured = {
        heading: collect(
            [
                (name, result["bits_per_byte"][each][protocol])
                for name, rows in found.items()
                for _, result in rows
                if protocol in result["bits_per_byte"][each]
            ]
        )
        for heading, each in sets.items()
    }
    return {heading: spreads for heading, spreads in measured.items() if spreads}


def _bits_table(
    found: Mapping[str, Sequence[tuple[Values, Values]]],
    bits: Mapping[str, Mapping[str, Spread]],
    sets: Mapping[str, str],
) -> Table:
    rows = [
        [
            name,
            f"{found[name][0][1]['parameters']:,}",
            *(bits[heading][name].text() for heading in sets),
        ]
        for name in found
    ]
    return Table(
        title="Bits per byte, mean and standard deviation over the seeds",
        columns=["model", "parameters", *sets],
        rows=rows,
    )


def _difference_table(
    bits: Mapping[str, Mapping[str, Spread]],
    sets: Mapping[str, str],
    paper: Mapping[str, Sequence[float]],
) -> Table:
    """Ours in percent of bits, theirs in percent of the logarithm of perplexity: the same unit."""
    first = next(iter(sets))
    rows = []
    for name in bits[first]:
        if name == _BASE or _BASE not in bits[first]:
            continue
        differences = [_percent(bits[heading][name], bits[heading][_BASE]) for heading in sets]
        theirs = "-"
        if name in paper:
            theirs = f"{100 * (math.log(paper[name][0]) / math.log(paper[_BASE][0]) - 1):+.1f} %"
        rows.append([name, *differences, theirs])
    return Table(
        title=f"More than {_BASE}, in percent of its loss; beside it the paper's, in domain",
        columns=["model", *sets, "paper"],
        rows=rows,
    )


def _percent(one: Spread, base: Spread) -> str:
    shown = f"{100 * (one.mean / base.mean - 1):+.1f}"
    difference = one.minus(base)
    if difference is not None and difference.deviation is not None:
        shown += f" ± {100 * difference.deviation / base.mean:.1f}"
    return f"{shown} %"


def _carried_table(bits: Mapping[str, Mapping[str, Spread]], sets: Mapping[str, str]) -> Table:
    names = next(iter(bits.values()))
    return Table(
        title="Bits per byte with the state carried through each passage, where it can be",
        columns=["model", *sets],
        rows=[[name, *(bits[heading][name].text() for heading in sets)] for name in names],
    )


def _curves(found: Mapping[str, Sequence[tuple[Values, Values]]]) -> Panel:
    lines = []
    for name, rows in found.items():
        curves = [result["curve"] for _, result in rows]
        x = [tokens for tokens, _ in curves[0]]
        y = [Spread(tuple(bits for _, bits in at)).mean for at in zip(*curves, strict=True)]
        lines.append(Line(name=name, x=x[1:], y=y[1:]))
    return Panel(
        title="while training, mean over the seeds",
        x_label="bytes trained on",
        y_label="bits per byte",
        lines=lines,
    )


def _points(bits: Mapping[str, Mapping[str, Spread]], sets: Mapping[str, str]) -> Panel:
    names = list(next(iter(bits.values())))
    return Panel(
        title="after training",
        x_label="",
        y_label="bits per byte",
        lines=[
            points(
                name,
                [bits[heading][name].mean for heading in sets],
                [bits[heading][name].deviation or 0.0 for heading in sets],
            )
            for name in names
        ],
        names=list(sets),
    )


def _order_checks(
    bits: Mapping[str, Mapping[str, Spread]],
    sets: Mapping[str, str],
    paper: Mapping[str, Sequence[float]],
) -> list[Check]:
    """Whether the paper's winner wins here, in domain; only of what was measured often enough."""
    first = bits[next(iter(sets))]
    if _BASE not in first or len(first[_BASE].values) < LEAST_SEEDS:
        return []
    checks = []
    for name in paper:
        if name == _BASE or name not in first or len(first[name].values) < LEAST_SEEDS:
            continue
        difference = first[name].minus(first[_BASE])
        assert difference is not None
        checks.append(
            Check(
                claim=f"{_BASE} is ahead of {name}",
                value=f"{difference.text()} bits",
                holds=min(difference.values) > 0,
            )
        )
    return checks


def _notes(budget: LanguageBudget) -> list[str]:
    training, scoring = budget.training, budget.scoring
    tokens = training["context"] * training["batch_size"] * training["steps"]
    return [
        f"Each model was trained on {tokens:,} bytes in windows of {training['context']:,} at a "
        f"highest learning rate of {training['optimizer']['learning_rate']:g}, all alike. It was "
        f"scored on {scoring['num_bytes']:,} bytes of each set in passages of "
        f"{scoring['passage']:,}, read in windows of {scoring['window']:,} that begin with nothing "
        f"and count their last {scoring['scored']:,}: the same for all, whatever their state.",
        'A claim "holds" where it does for each seed.',
    ]


def _study(
    title: str,
    variants: Callable[[LanguageBudget], dict[str, Any]],
    paper: Mapping[str, Sequence[float]],
) -> Study:
    return Study(
        cells=lambda ask: in_turn(_cells(variants, ask)),
        find=lambda ask, records: _find(title, variants, paper, ask, records),
        texts=language_texts,
    )


TABLE5 = _study("Table 5: architectures at equal parameters", _architectures, TABLE_5)
TABLE6 = _study("Table 6: RetNet with one thing left out", _ablations, TABLE_6)
