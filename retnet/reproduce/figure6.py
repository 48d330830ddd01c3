"""Figure 6: memory, throughput and latency of decoding against length and batch."""

import statistics
from collections.abc import Iterator

from retnet.reproduce.budgets import DECODING, DecodingBudget
from retnet.reproduce.cells import Cell, Values
from retnet.reproduce.cost import measure_decoding
from retnet.reproduce.findings import Findings, Line, Panel, Table
from retnet.reproduce.models import variant
from retnet.reproduce.paper import FIGURE_1
from retnet.reproduce.study import Ask, Records, Study

_NAMES = ("RetNet", "RetNet, by torch", "RetNet, plain step", "Transformer")


def _cells(ask: Ask) -> dict[int, Cell]:
    """A cell for each length."""
    budget = DECODING[ask.budget]
    return {
        length: Cell(
            key=f"decoding-{length}",
            measure=measure_decoding,
            settings={
                "retnet": variant(budget.model, {}).to_dict(),
                "transformer": variant(budget.model, {"mixer": "attention"}).to_dict(),
                "length": length,
                "batch_sizes": list(budget.batch_sizes),
                "dtype": budget.dtype,
                "steps": budget.steps,
                "rounds": budget.rounds,
            },
            is_timed=True,
        )
        for length in budget.lengths
    }


# (model, length, batch size) -> its row, see `measure_decoding`.
Rows = dict[tuple[str, int, int], Values]


def _find(ask: Ask, records: Records) -> Findings | None:
    budget = DECODING[ask.budget]
    results = {
        length: records[cell.key].result
        for length, cell in _cells(ask).items()
        if cell.key in records
    }
    if not results:
        return None
    rows = {
        (row["model"], length, row["batch_size"]): row
        for length, result in results.items()
        for row in result["rows"]
    }
    first = next(iter(results.values()))
    weights, kernel = first["weight_bytes"], first["kernel"]
    lengths = list(results)
    return Findings(
        title="Figure 6: decoding",
        tables=[
            _step_table(rows, lengths, budget),
            _ratio_table(rows, lengths, budget, weights),
        ],
        panels=list(_panels(rows, lengths, budget, weights)),
        notes=[
            f"{weights['RetNet'] / 1e6:,.0f} MB of weights, {budget.dtype}; medians of "
            f"{budget.rounds} rounds of {budget.steps} steps, in which the models took turns. "
            f"RetNet is decoded as `retnet serve` does it (kernel: {kernel}), by torch's products, "
            "and by `retnet.step`; the Transformer by torch's products too, with merged "
            "projections and a cache that is written in place. Memory is that of weights and of "
            "states or caches.",
            "The paper's ratios are of 7B on an A100 at 8,192 tokens, its batch size not stated.",
        ],
    )


def _ms(row: Values) -> float:
    return 1e3 * statistics.median(row["step_s"])


def _step_table(rows: Rows, lengths: list[int], budget: DecodingBudget) -> Table:
    def cell(name: str, length: int, batch: int) -> str:
        each = [1e3 * seconds for seconds in rows[name, length, batch]["step_s"]]
        return f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})"

    return Table(
        title="Milliseconds a step: median, least and greatest",
        columns=["model, tokens before", *(f"batch {batch}" for batch in budget.batch_sizes)],
        rows=[
            [f"{name}, {length:,}", *(cell(name, length, batch) for batch in budget.batch_sizes)]
            for name in _NAMES
            for length in lengths
        ],
    )


def _total(row: Values, weights: dict[str, int]) -> float:
    total: float = weights[row["model"].partition(",")[0]] + row["state_bytes"]
    return total


def _ratio_table(
    rows: Rows, lengths: list[int], budget: DecodingBudget, weights: dict[str, int]
) -> Table:
    table = []
    for length in lengths:
        for batch in (budget.batch_sizes[0], budget.batch_sizes[-1]):
            served, by_torch, theirs = (
                rows[name, length, batch] for name in ("RetNet", "RetNet, by torch", "Transformer")
            )
            table.append(
                [
                    f"{length:,}, batch {batch}",
                    f"{_ms(theirs) / _ms(served):.2f}",
                    f"{_ms(theirs) / _ms(by_torch):.2f}",
                    f"{_total(theirs, weights) / _total(served, weights):.2f}",
                    f"{theirs['state_bytes'] / served['state_bytes']:.1f}",
                ]
            )
    paper = f"{FIGURE_1['throughput']} (latency {FIGURE_1['latency']})"
    table.append(["the paper, 8,192", "-", paper, f"{FIGURE_1['memory']}", "-"])
    return Table(
        title="The Transformer over RetNet",
        columns=[
            "tokens before",
            "time, as served",
            "time, both by torch",
            "memory",
            "state alone",
        ],
        rows=table,
    )


def _panels(
    rows: Rows, lengths: list[int], budget: DecodingBudget, weights: dict[str, int]
) -> Iterator[Panel]:
    largest = budget.batch_sizes[-1]

    def over_lengths(title: str, unit: str, value: str) -> Panel:
        def of(name: str, length: int) -> float:
            row = rows[name, length, largest]
            if value == "memory":
                return _total(row, weights) / 1e6
            return 1e3 * largest / _ms(row)

        return Panel(
            title=f"{title}, batch {largest}",
            x_label="tokens before",
            y_label=unit,
            lines=[
                Line(name=name, x=lengths, y=[of(name, length) for length in lengths])
                for name in _NAMES
            ],
            log_x=True,
        )

    yield over_lengths("memory", "MB", "memory")
    yield over_lengths("throughput", "tokens/s", "speed")
    yield Panel(
        title="latency",
        x_label="batch size",
        y_label="ms a step",
        lines=[
            Line(
                name=f"{name}, {length:,}",
                x=budget.batch_sizes,
                y=[_ms(rows[name, length, batch]) for batch in budget.batch_sizes],
            )
            for name, length in [
                *(("Transformer", length) for length in lengths),
                ("RetNet", lengths[-1]),
            ]
        ],
        log_x=True,
        log_y=True,
    )


FIGURE6 = Study(cells=lambda ask: list(_cells(ask).values()), find=_find)
