"""Table 1: what decoding and training cost against length, as exponents that are measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

from retnet.reproduce.budgets import COST
from retnet.reproduce.cells import Cell, Values
from retnet.reproduce.cost import exponent, exponents, measure_step_cost, measure_training_cost
from retnet.reproduce.findings import Check, Findings, Line, Panel, Table
from retnet.reproduce.models import ARCHITECTURES, variant
from retnet.reproduce.paper import TABLE_1
from retnet.reproduce.study import Ask, Records, Study, slug

# Attention as it was before it was fused, whose scores are all in memory.
UNFUSED = "Transformer, not fused"
# Over rows at which fixed costs hardly count.
LONG = "RetNet, longer rows"

# Training rows of a model against those of the others.
_LENGTH = {UNFUSED: 0.5, LONG: 4}


def _cells(ask: Ask) -> dict[tuple[str, str], Cell]:
    cells = {("decoding", name): cell for name, cell in decoding_cells(ask).items()}
    return cells | {("training", name): cell for name, cell in training_cells(ask).items()}


def decoding_cells(ask: Ask) -> dict[str, Cell]:
    """What a step costs, of each architecture."""
    budget = COST[ask.budget]
    return {
        name: Cell(
            key=f"decoding-cost-{slug(name)}",
            measure=measure_step_cost,
            settings={
                "model": variant(budget.model, changes).to_dict(),
                "lengths": list(budget.decoding),
                "steps": budget.steps,
                "rounds": budget.rounds,
            },
            is_timed=True,
        )
        for name, changes in ARCHITECTURES.items()
    }


def training_cells(ask: Ask) -> dict[str, Cell]:
    """What training costs, of each architecture, and of attention that is not fused."""
    budget = COST[ask.budget]
    models = ARCHITECTURES | {
        UNFUSED: ARCHITECTURES["Transformer"],
        LONG: ARCHITECTURES["RetNet"],
    }
    return {
        name: Cell(
            key=f"training-cost-{slug(name)}",
            measure=measure_training_cost,
            settings={
                "model": variant(budget.model, changes).to_dict(),
                "lengths": [int(length * _LENGTH.get(name, 1)) for length in budget.training],
                "rounds": budget.rounds,
                "fused": name != UNFUSED,
            },
            is_timed=True,
        )
        for name, changes in models.items()
    }


Key = TypeVar("Key")
# What was found of ("decoding" or "training", model), with the lengths it was found at.
Found = dict[tuple[str, str], Values]


def costs_found(cells: Mapping[Key, Cell], records: Records) -> dict[Key, Values]:
    """What is known of each cell, and its lengths."""
    return {
        key: {**records[cell.key].result, "lengths": cell.settings["lengths"]}
        for key, cell in cells.items()
        if cell.key in records
    }


def _find(ask: Ask, records: Records) -> Findings | None:
    budget, found = COST[ask.budget], costs_found(_cells(ask), records)
    if not found:
        return None
    return Findings(
        title="Table 1: cost against length, measured",
        tables=[_exponent_table(found), _cost_table(found)],
        panels=_panels(found),
        checks=_checks(found),
        notes=[
            f"Exponents are slopes of logarithms: p of a cost that goes as length^p, over "
            f"{_range(budget.decoding)} tokens before a step and {_range(budget.training)} tokens "
            "of a row in training, half of that where it is not fused and four times that in the "
            "last row; of the median times, in brackets "
            f"the least and the greatest of {budget.rounds} rounds in which all lengths took "
            "turns. Fixed costs make exponents smaller than they would be of longer texts.",
            "Decoding is `retnet.step`, a row alone, for all; training memory is what the process "
            "grows by. H3 is trained in chunks here, not by Fourier transforms, and attention by "
            "torch's fused one, but for the row that says so.",
            *_busy(found),
        ],
    )


def _busy(found: Found) -> list[str]:
    """A remark where other programs wanted the processors."""
    names = [f"{name}, {what}" for (what, name), row in found.items() if (row["busy"] or 0) > 0.5]
    return [f"Other programs ran beside: {'; '.join(names)}."] if names else []


def _range(lengths: Sequence[int]) -> str:
    return f"{lengths[0]:,} to {lengths[-1]:,}"


def _exponent_table(found: Found) -> Table:
    rows = []
    for name in (*ARCHITECTURES, UNFUSED, LONG):
        step, memory = TABLE_1.get(name, ("", ""))
        decoding, training = found.get(("decoding", name)), found.get(("training", name))
        rows.append(
            [
                name,
                _slope(decoding, "step_s"),
                _memory_slope(decoding, "state_bytes"),
                step,
                _slope(training, "step_s"),
                _memory_slope(training, "peak_bytes"),
                memory,
            ]
        )
    return Table(
        title="Exponents, beside what the paper states",
        columns=[
            "model",
            "a step's time",
            "its state",
            "paper, a step",
            "training time",
            "its memory",
            "paper, memory",
        ],
        rows=rows,
    )


def _slope(found: Values | None, key: str) -> str:
    if found is None:
        return "-"
    each = exponents(found["lengths"], found[key])
    return f"{_median_slope(found):.2f} ({min(each):.2f} to {max(each):.2f})"


def _median_slope(found: Values) -> float:
    return exponent(found["lengths"], [statistics.median(rounds) for rounds in found["step_s"]])


def _memory_slope(found: Values | None, key: str) -> str:
    if found is None or min(found[key]) <= 0:
        return "-"
    return f"{exponent(found['lengths'], found[key]):.2f}"


def _cost_table(found: Found) -> Table:
    """What is behind the exponents, at the ends."""
    rows = []
    for (what, name), result in found.items():
        lengths = result["lengths"]
        memory = result["state_bytes" if what == "decoding" else "peak_bytes"]
        for place in (0, -1):
            time_ms = 1e3 * statistics.median(result["step_s"][place])
            rows.append(
                [
                    f"{name}, {what}",
                    f"{lengths[place]:,}",
                    f"{time_ms:,.2f}",
                    f"{memory[place] / 1e6:,.2f}",
                ]
            )
    return Table(
        title="Milliseconds a step, and megabytes: state in decoding, growth in training",
        columns=["model", "tokens", "ms", "MB"],
        rows=rows,
    )


def _panels(found: Found) -> list[Panel]:
    panels = []
    for what, memory, unit in (
        ("decoding", "state_bytes", "state"),
        ("training", "peak_bytes", "growth"),
    ):
        results = {name: result for (kind, name), result in found.items() if kind == what}
        times = [
            Line(
                name=name,
                x=result["lengths"],
                y=[1e3 * statistics.median(rounds) for rounds in result["step_s"]],
            )
            for name, result in results.items()
        ]
        held = [
            Line(name=name, x=result["lengths"], y=[each / 1e6 for each in result[memory]])
            for name, result in results.items()
            if min(result[memory]) > 0
        ]
        panels += [
            Panel(
                title=f"{what}: time",
                x_label="tokens",
                y_label="ms a step",
                lines=times,
                log_x=True,
                log_y=True,
            ),
            Panel(
                title=f"{what}: memory",
                x_label="tokens",
                y_label=f"MB of {unit}",
                lines=held,
                log_x=True,
                log_y=True,
            ),
        ]
    return panels


def _checks(found: Found) -> list[Check]:
    checks = []
    ours, theirs = found.get(("decoding", "RetNet")), found.get(("decoding", "Transformer"))
    training = found.get(("training", LONG))
    if ours is not None:
        time = _median_slope(ours)
        memory = exponent(ours["lengths"], ours["state_bytes"])
        checks += [
            _near("RetNet's decoding time: exponent within 0.05 of 0", time, 0, 0.05),
            _near("RetNet's decoding memory: exponent within 0.05 of 0", memory, 0, 0.05),
        ]
    if theirs is not None:
        memory = exponent(theirs["lengths"], theirs["state_bytes"])
        checks.append(_near("the Transformer's decoding memory: exponent 1", memory, 1, 0.01))
    if training is not None:
        time = _median_slope(training)
        claim = f"chunkwise training time, {LONG}: exponent within 0.1 of 1"
        checks.append(_near(claim, time, 1, 0.1))
    return checks


def _near(claim: str, value: float, goal: float, apart: float) -> Check:
    return Check(claim=claim, value=f"{value:.3f}", holds=abs(value - goal) <= apart)


TABLE1 = Study(cells=lambda ask: list(_cells(ask).values()), find=_find)
