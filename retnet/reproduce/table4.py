"""Table 4: memory and throughput of training, RetNet beside a Transformer with and without fusion.

The paper's lengths and sizes on this machine's CPU, in one process, a row at a time.
"""

import statistics

from retnet.reproduce.cells import Cell, Values
from retnet.reproduce.findings import Findings, Line, Panel, Table
from retnet.reproduce.paper import TABLE_4
from retnet.reproduce.study import Ask, Records, Study
from retnet.reproduce.table1 import UNFUSED, costs_found, training_cells

_NAMES = (UNFUSED, "Transformer", "RetNet")


def _find(ask: Ask, records: Records) -> Findings | None:
    cells = training_cells(ask)
    found = costs_found({name: cells[name] for name in _NAMES}, records)
    if not found:
        return None
    return Findings(
        title="Table 4: training memory and throughput",
        tables=[_table(found), _paper_table()],
        panels=_panels(found),
        notes=[
            "One row of so many bytes, forward and backward; memory is what the process grows by. "
            'The paper\'s "Transformer" holds all scores, as the one here that is not fused; its '
            "words a second are of eight A100 and of its own batch sizes: compare ratios.",
        ],
    )


def _table(found: dict[str, Values]) -> Table:
    rows = []
    for name, result in found.items():
        for length, rounds, peak in zip(
            result["lengths"], result["step_s"], result["peak_bytes"], strict=True
        ):
            speed = length / statistics.median(rounds)
            rows.append([name, f"{length:,}", f"{peak / 1e6:,.0f}", f"{speed:,.0f}"])
    columns = ["model", "length", "MB", "bytes/s"]
    return Table(title="Measured here", columns=columns, rows=rows)


def _paper_table() -> Table:
    rows = []
    for size, (memory, speed) in TABLE_4.items():
        rows.append(
            [
                size,
                *(f"{each:.1f}" for each in memory),
                *(f"{each:,.0f}" for each in speed),
                f"{speed[2] / speed[0]:.2f}",
                f"{speed[2] / speed[1]:.3f}",
            ]
        )
    return Table(
        title="The paper's, 8 x A100-80GB, length 8,192: GB and words/s of Transformer, with "
        "FlashAttention, RetNet; RetNet over both in speed",
        columns=["size", "GB", "Flash", "RetNet", "words/s", "Flash", "RetNet", "x", "x Flash"],
        rows=rows,
    )


def _panels(found: dict[str, Values]) -> list[Panel]:
    speeds = [
        Line(
            name=name,
            x=result["lengths"],
            y=[
                length / statistics.median(rounds)
                for length, rounds in zip(result["lengths"], result["step_s"], strict=True)
            ],
        )
        for name, result in found.items()
    ]
    memory = [
        Line(name=name, x=result["lengths"], y=[each / 1e6 for each in result["peak_bytes"]])
        for name, result in found.items()
    ]
    return [
        Panel(title="throughput", x_label="length", y_label="bytes/s", lines=speeds, log_x=True),
        Panel(title="memory", x_label="length", y_label="MB", lines=memory, log_x=True, log_y=True),
    ]


def _cells(ask: Ask) -> list[Cell]:
    cells = training_cells(ask)
    return [cells[name] for name in _NAMES]


TABLE4 = Study(cells=_cells, find=_find)
