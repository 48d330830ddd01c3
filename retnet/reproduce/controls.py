"""Controls: what no honest measurement may find. Where one does, something leaks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retnet.config import ModelConfig
from retnet.reproduce.cells import Cell, Values
from retnet.reproduce.config import Budget
from retnet.reproduce.findings import (
    Check,
    Findings,
    Panel,
    Spread,
    Table,
    check_seeds,
    spread_line,
)
from retnet.reproduce.models import ARCHITECTURES, variant
from retnet.reproduce.study import Ask, Records, Study, results, slug
from retnet.reproduce.task_cells import NUM_TESTED, task_cell


@dataclass(frozen=True, kw_only=True)
class ControlBudget:
    """How controls are run.

    Attributes:
        model: of all architectures.
        steps, batch_size, rate: of training.
        parity: bits of a row in training; beyond: as many times as that is asked about.
        length: random bytes of a row.
    """

    model: Mapping[str, Any]
    steps: int
    batch_size: int
    rate: float
    parity: int
    beyond: int
    length: int


_SMALL = ControlBudget(
    model={"d_model": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 256},
    steps=500,
    batch_size=16,
    rate=3e-3,
    parity=8,
    beyond=8,
    length=64,
)
BUDGETS: dict[Budget, ControlBudget] = {
    "smoke": ControlBudget(
        model={"d_model": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 256},
        steps=2,
        batch_size=4,
        rate=1e-3,
        parity=4,
        beyond=4,
        length=16,
    ),
    "small": _SMALL,
    "paper": _SMALL,
}

# Chance must lie within so many standard errors of what was found.
_ERRORS = 4


def _training(budget: ControlBudget) -> dict[str, Any]:
    return {
        "optimizer": {"learning_rate": budget.rate, "warmup_steps": min(100, budget.steps // 2)},
        "num_steps": budget.steps,
        "batch_size": budget.batch_size,
        "test_every": max(1, budget.steps // 5),
        "num_tested": 256,
        "threshold": 1.1,
    }


def _cells(ask: Ask) -> dict[tuple[str, str], list[Cell]]:
    budget = BUDGETS[ask.budget]
    far = budget.parity * budget.beyond
    cells = {}
    for name, changes in ARCHITECTURES.items():
        model = variant(budget.model, changes)
        # It can only answer 0 or 1: far from what it knows it might say anything else.
        of_bits = variant({**budget.model, "vocab_size": 2}, changes)
        cells["parity", name] = [
            task_cell(
                f"parity-{slug(name)}",
                model=of_bits,
                task={"kind": "parity", "length": budget.parity},
                training=_training(budget),
                seed=seed,
                tests={
                    "within": {"kind": "parity", "length": budget.parity},
                    # From twice the trained length on: right behind it some of what was learned
                    # may still hold.
                    "beyond": {"kind": "parity", "length": far, "first_asked": far // 2},
                },
            )
            for seed in ask.seeds
        ]
        cells["random", name] = [_random_cell(name, model, seed, budget) for seed in ask.seeds]
    return cells


def _random_cell(name: str, model: ModelConfig, seed: int, budget: ControlBudget) -> Cell:
    return task_cell(
        f"random-bytes-{slug(name)}",
        model=model,
        task={"kind": "random bytes", "length": budget.length},
        training=_training(budget),
        seed=seed,
    )


def _find(ask: Ask, records: Records) -> Findings | None:
    budget = BUDGETS[ask.budget]
    found = {key: done for key, cells in _cells(ask).items() if (done := results(cells, records))}
    if not found:
        return None
    rows: list[list[str]] = []
    checks: list[Check] = []
    for name in ARCHITECTURES:
        parity, random = found.get(("parity", name), {}), found.get(("random", name), {})
        if parity and random:
            bits = Spread({seed: row["nats"] / math.log(2) for seed, row in random.items()})
            within, beyond = (_accuracy(parity, where) for where in ("within", "beyond"))
            rows.append([name, within.text(), beyond.text(4), bits.text(4)])
            checks += [*_chance(name, beyond), *_eight_bits(name, bits)]
    names = [row[0] for row in rows]
    return Findings(
        title="Controls: what no honest measurement may find",
        tables=[
            Table(
                title="Right answers about parity, and bits per random byte",
                columns=[
                    "model",
                    f"parity of {budget.parity} bits, as trained",
                    f"of {budget.parity * budget.beyond // 2} to {budget.parity * budget.beyond}",
                    "bits per random byte",
                ],
                rows=rows,
            )
        ],
        panels=_panels(found, names),
        checks=checks,
        notes=[
            "Parity of all bits so far, asked at each of them. Guessing is right half of the time; "
            f"a claim holds where each seed is within {_ERRORS} standard errors of that, answers "
            "of a row counting as one. "
            "A model of random bytes can't cost less than 8 bits each; training makes it a little "
            "worse than that.",
        ],
    )


def _accuracy(rows: Mapping[int, Values], where: str) -> Spread:
    return Spread({seed: row["tests"][where]["accuracy"] for seed, row in rows.items()})


def _chance(name: str, beyond: Spread) -> list[Check]:
    # Answers of one row depend on each other: at worst they are as good as one.
    error = 0.5 / math.sqrt(NUM_TESTED)
    return check_seeds(
        f"{name}: parity far beyond the trained length is guessed, 0.5 ± {_ERRORS * error:.3f}",
        beyond,
        lambda accuracy: abs(accuracy - 0.5) <= _ERRORS * error,
        digits=4,
    )


def _eight_bits(name: str, bits: Spread) -> list[Check]:
    return check_seeds(
        f"{name}: random bytes cost no less than 8.00 bits, and hardly more",
        bits,
        lambda each: 7.995 <= each < 8.05,
        digits=4,
    )


def _panels(found: Mapping[tuple[str, str], Mapping[int, Values]], names: list[str]) -> list[Panel]:
    if not names:
        return []
    lines = [
        spread_line(
            where, range(len(names)), [_accuracy(found["parity", name], where) for name in names]
        )
        for where in ("within", "beyond")
    ]
    return [
        Panel(
            title="parity: within the trained length, and beyond",
            x_label="",
            y_label="right answers",
            lines=lines,
            names=names,
        )
    ]


CONTROLS = Study(
    cells=lambda ask: [cell for cells in _cells(ask).values() for cell in cells], find=_find
)
