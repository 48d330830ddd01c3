"""The part of the study of recall that trains nothing: how much a state can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from retnet.reproduce.cells import Cell, Place, Values
from retnet.reproduce.findings import Check, Line, Panel, Spread, Table, check_seeds, spread_line
from retnet.reproduce.study import Ask, Records, results
from retnet.tasks.capacity import recalled_by_attention, recalled_by_retention

_ATTENTION = "softmax attention"


@dataclass(frozen=True, kw_only=True)
class CapacityBudget:
    """What is written into states and asked for.

    Attributes:
        key_sizes: K of the states, ascending; attention's keys have the smallest.
        pairs: how many are written, ascending.
        num_values: from how many values the answer is chosen.
        num_rows: states.
        gamma: of retention.
        sharpness: of attention.
    """

    key_sizes: tuple[int, ...]
    pairs: tuple[int, ...]
    num_values: int
    num_rows: int
    gamma: float = 511 / 512
    sharpness: float = 100.0


Found = dict[int, Values]


def capacity_cells(budget: CapacityBudget, ask: Ask) -> list[Cell]:
    """One for each seed."""
    settings = {name: _plain(value) for name, value in asdict(budget).items()}
    return [
        Cell(
            key=f"recall-capacity-seed{seed}",
            measure=measure_capacity,
            settings={"budget": settings, "training": {"seed": seed}},
        )
        for seed in ask.seeds
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def measure_capacity(_: Place, *, budget: Values, training: Values) -> Values:
    """The share of values that came back, by key size and number of pairs."""
    asked = {
        "num_values": budget["num_values"],
        "num_rows": budget["num_rows"],
        "seed": training["seed"],
    }
    found: Values = {
        f"{size}": [
            recalled_by_retention(size, pairs, gamma=budget["gamma"], **asked)
            for pairs in budget["pairs"]
        ]
        for size in budget["key_sizes"]
    }
    smallest = budget["key_sizes"][0]
    found[_ATTENTION] = [
        recalled_by_attention(smallest, pairs, sharpness=budget["sharpness"], **asked)
        for pairs in budget["pairs"]
    ]
    return found


def found_capacity(budget: CapacityBudget, ask: Ask, records: Records) -> Found:
    """What was found from each seed that is done."""
    return results(capacity_cells(budget, ask), records)


def capacity_table(found: Found, budget: CapacityBudget) -> Table:
    """Shares by key size and pairs."""
    rows = [
        [f"retention, keys of {size}", f"{_state_bytes(size):,}", *_texts(found, f"{size}", budget)]
        for size in budget.key_sizes
    ]
    rows.append([_ATTENTION, "grows", *_texts(found, _ATTENTION, budget)])
    return Table(
        title="What a state can hold: share of random values that come back, nothing being learned",
        columns=["memory", "bytes", *(f"{pairs} pairs" for pairs in budget.pairs)],
        rows=rows,
    )


def _texts(found: Found, name: str, budget: CapacityBudget) -> list[str]:
    return [_spread(found, name, place).text() for place in range(len(budget.pairs))]


def capacity_panel(found: Found, budget: CapacityBudget) -> Panel:
    """Shares by the size of the state."""
    sizes = [_state_bytes(size) for size in budget.key_sizes]

    def of(place: int) -> Line:
        spreads = [_spread(found, f"{size}", place) for size in budget.key_sizes]
        return spread_line(f"{budget.pairs[place]} pairs", sizes, spreads)

    return Panel(
        title="what a state can hold",
        x_label="bytes of state",
        y_label="values that come back",
        lines=[of(place) for place in range(len(budget.pairs))],
        log_x=True,
    )


def capacity_checks(found: Found, budget: CapacityBudget) -> list[Check]:
    """More of a larger state, less of more pairs; all of attention."""
    last = len(budget.pairs) - 1
    smallest = f"{budget.key_sizes[0]}"
    by_size = {
        seed: [row[f"{size}"][last] for size in budget.key_sizes] for seed, row in found.items()
    }
    by_pairs = {seed: row[smallest][::-1] for seed, row in found.items()}
    return [
        *check_seeds(
            "control: attention gives back 0.99 of any number of pairs",
            Spread({seed: min(row[_ATTENTION]) for seed, row in found.items()}),
            lambda share: share >= 0.99,
        ),
        *check_seeds(
            f"{budget.pairs[last]} pairs: a larger state gives back more, at least by",
            _least_rise(by_size),
            lambda rise: rise > 0,
        ),
        *check_seeds(
            f"keys of {smallest}: fewer pairs give back more, at least by",
            _least_rise(by_pairs),
            lambda rise: rise > 0,
        ),
    ]


def _least_rise(shares: Mapping[int, Sequence[float]]) -> Spread:
    """The smallest step from one share to the next, by seed."""
    return Spread(
        {
            seed: min(after - before for before, after in pairwise(each))
            for seed, each in shares.items()
        }
    )


def _spread(found: Found, name: str, place: int) -> Spread:
    return Spread({seed: row[name][place] for seed, row in found.items()})


def _state_bytes(key_size: int) -> int:
    return 4 * 2 * key_size**2
