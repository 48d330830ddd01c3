"""Recall: how much of what was read can be asked for, by the size of the state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retnet.config import ModelConfig
from retnet.reproduce.capacity import (
    CapacityBudget,
    capacity_cells,
    capacity_checks,
    capacity_panel,
    capacity_table,
    found_capacity,
)
from retnet.reproduce.cells import Cell, Values
from retnet.reproduce.config import Budget
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
from retnet.reproduce.study import Ask, Records, Study, in_turn, results, slug
from retnet.reproduce.task_cells import task_cell


@dataclass(frozen=True, kw_only=True)
class RecallBudget:
    """What is asked of whom.

    Attributes:
        model: of all models.
        models: name -> what is its own; those with a key_size alone are compared by it.
        recall: the associative recall that all of them are trained on.
        asked: pairs that each is then asked for, ascending; among them those it was trained with.
        tasks: what else is learned: name -> task.
        asked_tasks: the models that learn these.
        batch_size, steps, rate: of training.
        capacity: what is written into states without training.
    """

    model: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    recall: Mapping[str, Any]
    asked: tuple[int, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    asked_tasks: tuple[str, ...]
    batch_size: int
    steps: int
    rate: float
    capacity: CapacityBudget

    @property
    def trained_with(self) -> int:
        """Pairs of a row in training."""
        return int(self.recall["num_pairs"])

    @property
    def ours(self) -> list[str]:
        """The RetNets that differ in the size of their keys alone, smallest first."""
        return [name for name, own in self.models.items() if own.keys() == {"key_size"}]


_ATTENTION = "Transformer"
_PAPERS = "the paper's decays"
_CONTROLS: Mapping[str, Mapping[str, Any]] = {
    _ATTENTION: {"mixer": "attention", "num_heads": 1, "key_size": 0},
    "Linear Transformer": {"mixer": "linear", "num_heads": 1, "key_size": 0},
}


def _ours(key_size: int) -> str:
    return f"RetNet, keys of {key_size}"


def _our_models(*key_sizes: int) -> dict[str, Mapping[str, Any]]:
    return {_ours(size): {"key_size": size} for size in key_sizes}


_SMALL = RecallBudget(
    model={
        "vocab_size": 8_192,
        "d_model": 64,
        "num_layers": 2,
        "num_heads": 2,
        "decay": "wide",
    },
    models={
        **_our_models(8, 16, 32, 64),
        f"{_ours(32)}, {_PAPERS}": {"key_size": 32, "decay": "equation8"},
        **_CONTROLS,
    },
    recall={"length": 64, "vocab_size": 8_192, "num_pairs": 4, "random_filler": True},
    asked=(2, 4, 8, 16),
    tasks={
        "copying 16": {"kind": "copying", "num_copied": 16, "vocab_size": 256},
        "needle in 128": {"kind": "needle", "length": 128, "depth": 0.25, "vocab_size": 256},
    },
    asked_tasks=(_ours(32), _ATTENTION),
    batch_size=64,
    steps=4_000,
    rate=3e-3,
    capacity=CapacityBudget(
        key_sizes=(8, 16, 32, 64, 128), pairs=(4, 16, 64, 256), num_values=4_096, num_rows=64
    ),
)
BUDGETS: dict[Budget, RecallBudget] = {
    "smoke": RecallBudget(
        model={"vocab_size": 64, "d_model": 32, "num_layers": 1, "num_heads": 2},
        models={**_our_models(4, 8), **_CONTROLS},
        recall={"length": 16, "vocab_size": 64, "num_pairs": 2, "random_filler": True},
        asked=(2, 4),
        tasks={"copying 4": {"kind": "copying", "num_copied": 4, "vocab_size": 16}},
        asked_tasks=(_ours(8), _ATTENTION),
        batch_size=4,
        steps=2,
        rate=1e-3,
        capacity=CapacityBudget(key_sizes=(4, 16), pairs=(4, 32), num_values=64, num_rows=16),
    ),
    "small": _SMALL,
    "paper": _SMALL,
}


def _training(budget: RecallBudget) -> dict[str, Any]:
    return {
        "optimizer": {
            "learning_rate": budget.rate,
            "weight_decay": 0.1,
            "warmup_steps": min(100, budget.steps // 2),
        },
        "num_steps": budget.steps,
        "batch_size": budget.batch_size,
        "test_every": max(1, budget.steps // 20),
    }


_RECALL = "recall"


def _pairs(count: int) -> str:
    return f"{count} pairs"


def _cells(ask: Ask) -> dict[tuple[str, str], list[Cell]]:
    """(model, what it is trained on) -> its cells, one a seed."""
    budget = BUDGETS[ask.budget]
    recall = {"kind": "recall", **budget.recall}
    tests = {_pairs(count): {**recall, "num_pairs": count} for count in budget.asked}

    def of(name: str, task: str, settings: Mapping[str, Any], **more: Any) -> list[Cell]:
        return [
            task_cell(
                f"recall-{slug(name)}" if task == _RECALL else f"recall-{slug(name)}-{slug(task)}",
                model=ModelConfig(**{**budget.model, **budget.models[name]}),
                task=settings,
                training=_training(budget),
                seed=seed,
                **more,
            )
            for seed in ask.seeds
        ]

    cells = {(name, _RECALL): of(name, _RECALL, recall, tests=tests) for name in budget.models}
    for task, settings in budget.tasks.items():
        cells |= {(name, task): of(name, task, settings) for name in budget.asked_tasks}
    return cells


# (model, what it is asked) -> what came of it from each seed.
Found = dict[tuple[str, str], dict[int, Values]]


def _found(ask: Ask, records: Records) -> Found:
    found: Found = {}
    for (name, task), cells in _cells(ask).items():
        for seed, result in results(cells, records).items():
            asked = result["tests"] if task == _RECALL else {task: {}}
            for each, answers in asked.items():
                found.setdefault((name, each), {})[seed] = {**result, **answers}
    return found


def _find(ask: Ask, records: Records) -> Findings | None:
    budget, found = BUDGETS[ask.budget], _found(ask, records)
    held = found_capacity(budget.capacity, ask, records)
    if not found or not held:
        return None
    tables = [
        capacity_table(held, budget.capacity),
        _table("Associative recall: share of right answers", found, [*map(_pairs, budget.asked)]),
        _table("Other tasks: share of right answers", found, list(budget.tasks)),
    ]
    return Findings(
        title="Recall: what a state of constant size can be asked for",
        tables=[table for table in tables if table.rows],
        panels=[
            capacity_panel(held, budget.capacity),
            _by_state(found, budget),
            _by_pairs(found, budget),
        ],
        checks=[*capacity_checks(held, budget.capacity), *_checks(found, budget)],
        notes=[
            "What a state can hold: random unit keys and values, two numbers of a value for one of "
            f"a key, are read by retention with the decay {budget.capacity.gamma:.4f}; then each "
            f"key is asked for, and the nearest of {budget.capacity.num_values:,} values is the "
            "answer.",
            f"Multi-query associative recall of Zoology (arXiv:2312.04927) in "
            f"{budget.recall['length']} tokens, vocabulary {budget.recall['vocab_size']:,}, "
            f"{budget.model['num_layers']} layers of width {budget.model['d_model']}. Every model "
            f"is trained on rows of {_pairs(budget.trained_with)}, {budget.batch_size} a step, at "
            f"most {budget.steps:,} steps, fewer where 99 % were right before, at the rate that "
            "attention does well with; it is then asked about rows with fewer and with more pairs. "
            "Larger keys have more parameters too. What is measured is what can be learned in so "
            "many steps, which may be less than what a state can hold.",
        ],
    )


def _accuracy(found: Found, name: str, task: str) -> Spread | None:
    rows = found.get((name, task))
    return Spread({seed: row["accuracy"] for seed, row in rows.items()}) if rows else None


def _names(found: Found) -> list[str]:
    return list(dict.fromkeys(name for name, _ in found))


def _table(title: str, found: Found, tasks: list[str]) -> Table:
    rows = []
    for name in _names(found):
        spreads = [_accuracy(found, name, task) for task in tasks]
        if not any(spreads):
            continue
        known = [row for task in tasks for row in found.get((name, task), {}).values()]
        states, sizes = ([row[key] for row in known] for key in ("state_bytes", "num_parameters"))
        cells = ["-" if spread is None else spread.text() for spread in spreads]
        rows.append([name, f"{sizes[0]:,}", f"{max(states):,}", *cells])
    return Table(title=title, columns=["model", "parameters", "state, bytes", *tasks], rows=rows)


def _by_state(found: Found, budget: RecallBudget) -> Panel:
    def of(task: str) -> Line:
        known = [name for name in budget.ours if (name, task) in found]
        states = [next(iter(found[name, task].values()))["state_bytes"] for name in known]
        return spread_line(task, states, _known_spreads(found, known, [task]))

    return Panel(
        title="what was learned, by the size of RetNet's state",
        x_label="bytes of state",
        y_label="right answers",
        lines=[of(_pairs(count)) for count in budget.asked],
        log_x=True,
    )


def _by_pairs(found: Found, budget: RecallBudget) -> Panel:
    def of(name: str) -> Line:
        known = [count for count in budget.asked if (name, _pairs(count)) in found]
        return spread_line(name, known, _known_spreads(found, [name], [*map(_pairs, known)]))

    return Panel(
        title="what was learned, by the number of pairs",
        x_label="pairs",
        y_label="right answers",
        lines=[of(name) for name in _names(found)],
        log_x=True,
    )


def _known_spreads(found: Found, names: list[str], tasks: list[str]) -> list[Spread]:
    spreads = (_accuracy(found, name, task) for name in names for task in tasks)
    return [spread for spread in spreads if spread is not None]


def _checks(found: Found, budget: RecallBudget) -> list[Check]:
    largest = budget.ours[-1]
    trained, few, many = map(_pairs, (budget.trained_with, min(budget.asked), max(budget.asked)))
    return [
        *check_seeds(
            f"control: attention recalls {trained}, 0.99",
            _accuracy(found, _ATTENTION, trained),
            lambda accuracy: accuracy >= 0.99,
        ),
        *_more(f"{largest}: more of {few} than of {many}", found, (largest, few), (largest, many)),
    ]


def _more(claim: str, found: Found, one: tuple[str, str], other: tuple[str, str]) -> list[Check]:
    higher, lower = _accuracy(found, *one), _accuracy(found, *other)
    if higher is None or lower is None:
        return []
    return check_seeds(claim, higher.minus(lower), lambda difference: difference > 0)


def _all_cells(ask: Ask) -> list[Cell]:
    held = capacity_cells(BUDGETS[ask.budget].capacity, ask)
    return [*held, *in_turn(_cells(ask).values())]


RECALL = Study(cells=_all_cells, find=_find)
