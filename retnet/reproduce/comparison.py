"""Tables 5 and 6: models that differ in one thing, trained alike and scored on several texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retnet.reproduce.budgets import LANGUAGE, LanguageBudget
from retnet.reproduce.cells import Cell, Values
from retnet.reproduce.findings import (
    Check,
    Findings,
    Line,
    Panel,
    Spread,
    Table,
    check_seeds,
    spread_line,
)
from retnet.reproduce.language_cells import language_cell, language_texts
from retnet.reproduce.models import ARCHITECTURES, ablations, variant
from retnet.reproduce.paper import TABLE_5, TABLE_6
from retnet.reproduce.study import Ask, Records, Study, in_turn, results, slug

# Ours, beside the paper's rows: decays for bytes, where the last few tokens matter most.
_WIDE = {"RetNet, decays from 1/2": {"decay": "wide"}}

_BASE = "RetNet"

# Of each model, what was found from each seed.
Found = dict[str, dict[int, Values]]
# Of each heading of a set, the bits per byte of each model.
Bits = dict[str, dict[str, Spread]]


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
    found = {
        name: rows
        for name, cells in _cells(variants, ask).items()
        if (rows := results(cells, records))
    }
    if not found:
        return None
    windows, carried = (_bits(found, budget.sets, kind) for kind in ("windows", "carried"))
    return Findings(
        title=title,
        tables=[
            _bits_table(found, windows, budget.sets),
            _difference_table(windows, budget.sets, paper),
            *([_carried_table(carried, budget.sets)] if carried else []),
        ],
        panels=[_curves(found), _points(windows, budget.sets)],
        checks=[_equal(found), *_order_checks(windows, budget.sets, paper)],
        notes=_notes(budget),
    )


def _bits(found: Found, sets: Mapping[str, str], protocol: str) -> Bits:
    measured = {
        heading: {
            name: Spread({seed: row["bits_per_byte"][each][protocol] for seed, row in rows.items()})
            for name, rows in found.items()
            if all(protocol in row["bits_per_byte"][each] for row in rows.values())
        }
        for heading, each in sets.items()
    }
    return {heading: spreads for heading, spreads in measured.items() if spreads}


def _parameters(rows: Mapping[int, Values]) -> int:
    count: int = next(iter(rows.values()))["parameters"]
    return count


def _bits_table(found: Found, bits: Bits, sets: Mapping[str, str]) -> Table:
    return Table(
        title="Bits per byte, mean and standard deviation over the seeds",
        columns=["model", "parameters", *sets],
        rows=[
            [name, f"{_parameters(rows):,}", *(bits[heading][name].text() for heading in sets)]
            for name, rows in found.items()
        ],
    )


def _difference_table(
    bits: Bits, sets: Mapping[str, str], paper: Mapping[str, Sequence[float]]
) -> Table:
    """Ours in percent of bits, theirs in percent of the logarithm of perplexity: the same unit."""
    first = bits[next(iter(sets))]
    rows = []
    for name in first:
        if name == _BASE or _BASE not in first:
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
    difference = one.minus(base)
    if difference is None:
        return "-"
    shown = f"{100 * difference.mean / base.mean:+.1f}"
    if difference.deviation is not None:
        shown += f" ± {100 * difference.deviation / base.mean:.1f}"
    return f"{shown} %"


def _carried_table(bits: Bits, sets: Mapping[str, str]) -> Table:
    names = next(iter(bits.values()))
    return Table(
        title="Bits per byte with the state carried through each passage, where it can be",
        columns=["model", *sets],
        rows=[[name, *(bits[heading][name].text() for heading in sets)] for name in names],
    )


def _curves(found: Found) -> Panel:
    lines = []
    for name, rows in found.items():
        curves = [row["curve"] for row in rows.values()]
        x = [tokens for tokens, _ in curves[0]]
        y = [sum(bits for _, bits in at) / len(at) for at in zip(*curves, strict=True)]
        lines.append(Line(name=name, x=x[1:], y=y[1:]))
    return Panel(
        title="while training, mean over the seeds",
        x_label="bytes trained on",
        y_label="bits per byte",
        lines=lines,
    )


def _points(bits: Bits, sets: Mapping[str, str]) -> Panel:
    return Panel(
        title="after training",
        x_label="",
        y_label="bits per byte",
        lines=[
            spread_line(name, range(len(sets)), [bits[heading][name] for heading in sets])
            for name in next(iter(bits.values()))
        ],
        names=list(sets),
    )


def _equal(found: Found) -> Check:
    sizes = [_parameters(rows) for rows in found.values()]
    apart = 100 * (max(sizes) / min(sizes) - 1)
    claim = "parameters differ by at most 2 %"
    return Check(claim=claim, value=f"{apart:.2f} %", holds=apart <= 2)


def _order_checks(
    bits: Bits, sets: Mapping[str, str], paper: Mapping[str, Sequence[float]]
) -> list[Check]:
    """Whether the paper's winner wins here, in domain; and against what the paper left out."""
    first = bits[next(iter(sets))]
    checks = []
    for name, spread in first.items():
        if name == _BASE or _BASE not in first or name in _WIDE:
            continue
        said = "" if name in paper else " (not in the paper's table)"
        checks += check_seeds(
            f"{_BASE} is ahead of {name}{said}",
            spread.minus(first[_BASE]),
            lambda difference: difference > 0,
            unit="bits",
        )
    return checks


def _notes(budget: LanguageBudget) -> list[str]:
    training, scoring = budget.training, budget.scoring
    tokens = training["context"] * training["batch_size"] * training["steps"]
    return [
        f"Each model was trained on {tokens:,} bytes in windows of {training['context']:,} at a "
        f"highest learning rate of {training['optimizer']['learning_rate']:g}, the one that this "
        "project's small models of bytes do well with. It was scored on "
        f"{scoring['num_bytes']:,} bytes of each set in passages of {scoring['passage']:,}, read "
        f"in windows of {scoring['window']:,} that begin with nothing and count their last "
        f"{scoring['scored']:,}: the same for all, whatever their state.",
        'A claim "holds" where it does for each seed.',
    ]


def _study(
    title: str,
    variants: Callable[[LanguageBudget], dict[str, Any]],
    paper: Mapping[str, Sequence[float]],
) -> Study:
    return Study(
        cells=lambda ask: in_turn(_cells(variants, ask).values()),
        find=lambda ask, records: _find(title, variants, paper, ask, records),
        texts=language_texts,
    )


TABLE5 = _study("Table 5: architectures at equal parameters", _architectures, TABLE_5)
TABLE6 = _study("Table 6: RetNet with one thing left out", _ablations, TABLE_6)
