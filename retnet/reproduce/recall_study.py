"""Recall: how much of what was read can be asked for, by the size of the state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retnet.config import ModelConfig
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
        length, vocab_size, random_filler: of associative recall.
        asked: pairs to be recalled, ascending -> the models that are asked for so many.
        questions: of a step of recall; rows with more pairs are fewer.
        steps, rate: of training.
        tasks: what else is asked: name -> task; batch_size: rows of a step.
        asked_tasks: the models that are asked these.
    """

    model: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    length: int
    vocab_size: int
    random_filler: bool
    asked: Mapping[int, tuple[str, ...]]
    questions: int
    steps: int
    rate: float
    tasks: Mapping[str, Mapping[str, Any]]
    batch_size: int
    asked_tasks: tuple[str, ...]


_ATTENTION = "Transformer"
_WIDE = "decays from 1/2"
_CONTROLS: Mapping[str, Mapping[str, Any]] = {
    _ATTENTION: {"mixer": "attention", "num_heads": 1, "key_size": 0},
    "Linear Transformer": {"mixer": "linear", "num_heads": 1, "key_size": 0},
}


def _ours(key_size: int) -> str:
    return f"RetNet, keys of {key_size}"


def _our_models(*key_sizes: int) -> dict[str, Mapping[str, Any]]:
    return {_ours(size): {"key_size": size} for size in key_sizes}


_SMALL = RecallBudget(
    model={"vocab_size": 8_192, "d_model": 64, "num_layers": 2, "num_heads": 2},
    models={
        **_our_models(8, 16, 32, 64),
        f"{_ours(32)}, {_WIDE}": {"key_size": 32, "decay": "wide"},
        **_CONTROLS,
    },
    length=64,
    vocab_size=8_192,
    random_filler=True,
    asked={
        4: (*map(_ours, (8, 16, 32, 64)), f"{_ours(32)}, {_WIDE}", *_CONTROLS),
        8: (*map(_ours, (8, 16, 32)), _ATTENTION),
        16: (*map(_ours, (8, 16, 32)), _ATTENTION),
    },
    questions=256,
    steps=4_000,
    rate=3e-3,
    tasks={
        "copying 16": {"kind": "copying", "num_copied": 16, "vocab_size": 256},
        "induction in 64": {"kind": "induction", "length": 64, "vocab_size": 256},
        "needle in 128": {"kind": "needle", "length": 128, "depth": 0.25, "vocab_size": 256},
    },
    batch_size=64,
    asked_tasks=(_ours(32), _ATTENTION),
)
BUDGETS: dict[Budget, RecallBudget] = {
    "smoke": RecallBudget(
        model={"vocab_size": 64, "d_model": 32, "num_layers": 1, "num_heads": 2},
        models={**_our_models(4, 8), **_CONTROLS},
        length=16,
        vocab_size=64,
        random_filler=True,
        asked={2: (_ours(4), _ours(8), *_CONTROLS), 4: (_ours(8), _ATTENTION)},
        questions=8,
        steps=2,
        rate=1e-3,
        tasks={"copying 4": {"kind": "copying", "num_copied": 4, "vocab_size": 16}},
        batch_size=4,
        asked_tasks=(_ours(8), _ATTENTION),
    ),
    "small": _SMALL,
    "paper": _SMALL,
}


def _training(budget: RecallBudget, batch_size: int) -> dict[str, Any]:
    return {
        "optimizer": {
            "learning_rate": budget.rate,
            "weight_decay": 0.1,
            "warmup_steps": min(100, budget.steps // 2),
        },
        "num_steps": budget.steps,
        "batch_size": batch_size,
        "test_every": max(1, budget.steps // 20),
    }


def _cells(ask: Ask) -> dict[tuple[str, str], list[Cell]]:
    """(model, task) -> its cells, one a seed."""
    budget = BUDGETS[ask.budget]
    recall = {
        "kind": "recall",
        "length": budget.length,
        "vocab_size": budget.vocab_size,
        "random_filler": budget.random_filler,
    }
    asked: list[tuple[str, str, Mapping[str, Any], int]] = [
        (name, f"{pairs} pairs", {**recall, "num_pairs": pairs}, budget.questions // pairs)
        for pairs, names in budget.asked.items()
        for name in names
    ]
    asked += [
        (name, task, settings, budget.batch_size)
        for task, settings in budget.tasks.items()
        for name in budget.asked_tasks
    ]
    return {
        (name, task): [
            task_cell(
                f"recall-{slug(name)}-{slug(task)}",
                model=ModelConfig(**{**budget.model, **budget.models[name]}),
                task=settings,
                training=_training(budget, batch_size),
                seed=seed,
            )
            for seed in ask.seeds
        ]
        for name, task, settings, batch_size in asked
    }


Found = dict[tuple[str, str], dict[int, Values]]


def _find(ask: Ask, records: Records) -> Findings | None:
    budget = BUDGETS[ask.budget]
    found: Found = {
        key: rows for key, cells in _cells(ask).items() if (rows := results(cells, records))
    }
    if not found:
        return None
    pairs = [f"{count} pairs" for count in budget.asked]
    tables = [
        _table("Associative recall: share of right answers", found, pairs),
        _table("Other tasks: share of right answers", found, list(budget.tasks)),
    ]
    return Findings(
        title="Recall: what a state of constant size can be asked for",
        tables=[table for table in tables if table.rows],
        panels=[_by_state(found, budget), _by_pairs(found, budget)],
        checks=_checks(found, budget),
        notes=[
            f"Multi-query associative recall of Zoology (arXiv:2312.04927) in {budget.length} "
            f"tokens, vocabulary {budget.vocab_size:,}, {budget.model['num_layers']} layers of "
            f"width {budget.model['d_model']}, at most {budget.steps:,} steps with "
            f"{budget.questions} questions each, fewer steps where 99 % were right before, at the "
            "rate that attention does well with. Larger keys have more parameters too. What is "
            "measured is what can be learned in so many steps, which may be less than what a state "
            "can hold.",
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
    def of(pairs: int) -> Line:
        task, names = f"{pairs} pairs", _ours_asked(budget, pairs)
        known = [name for name in names if (name, task) in found]
        states = [next(iter(found[name, task].values()))["state_bytes"] for name in known]
        return spread_line(task, states, _known_spreads(found, known, [task]))

    return Panel(
        title="RetNet by the size of its state",
        x_label="bytes of state",
        y_label="right answers",
        lines=[of(pairs) for pairs in budget.asked],
        log_x=True,
    )


def _ours_asked(budget: RecallBudget, pairs: int) -> list[str]:
    """The RetNets that differ in the size of their keys alone, smallest first."""
    return [name for name in budget.asked[pairs] if budget.models[name].keys() == {"key_size"}]


def _by_pairs(found: Found, budget: RecallBudget) -> Panel:
    def of(name: str) -> Line:
        known = [count for count in budget.asked if (name, f"{count} pairs") in found]
        tasks = [f"{count} pairs" for count in known]
        return spread_line(name, known, _known_spreads(found, [name], tasks))

    return Panel(
        title="by the number of pairs",
        x_label="pairs",
        y_label="right answers",
        lines=[of(name) for name in _names(found)],
        log_x=True,
    )


def _known_spreads(found: Found, names: list[str], tasks: list[str]) -> list[Spread]:
    spreads = (_accuracy(found, name, task) for name in names for task in tasks)
    return [spread for spread in spreads if spread is not None]


def _checks(found: Found, budget: RecallBudget) -> list[Check]:
    fewest, most = min(budget.asked), max(budget.asked)
    swept = max(budget.asked, key=lambda pairs: len(_ours_asked(budget, pairs)))
    smallest, *_, largest = _ours_asked(budget, swept)
    always = _ours_asked(budget, most)[-1]
    few, many, sweep = (f"{pairs} pairs" for pairs in (fewest, most, swept))
    return [
        *check_seeds(
            f"control: attention recalls {sweep}, 0.99",
            _accuracy(found, _ATTENTION, sweep),
            lambda accuracy: accuracy >= 0.99,
        ),
        *_more(
            f"{sweep}: {largest}, more than {smallest}", found, (largest, sweep), (smallest, sweep)
        ),
        *_more(f"{always}: more of {few} than of {many}", found, (always, few), (always, many)),
    ]


def _more(claim: str, found: Found, one: tuple[str, str], other: tuple[str, str]) -> list[Check]:
    higher, lower = _accuracy(found, *one), _accuracy(found, *other)
    if higher is None or lower is None:
        return []
    return check_seeds(claim, higher.minus(lower), lambda difference: difference > 0)


RECALL = Study(cells=lambda ask: in_turn(_cells(ask).values()), find=_find)
