"""Figure 5: loss against size, RetNet and Transformer."""

import math

from retnet.reproduce.budgets import LANGUAGE, SIZES
from retnet.reproduce.cells import Cell
from retnet.reproduce.findings import Findings, Panel, Spread, Table, spread_line
from retnet.reproduce.language_cells import language_cell, language_texts
from retnet.reproduce.models import ARCHITECTURES, variant
from retnet.reproduce.paper import FIGURE_5
from retnet.reproduce.study import Ask, Records, Study, in_turn, results, slug

_MODELS = ("RetNet", "Transformer")


def _cells(ask: Ask) -> dict[tuple[str, str], list[Cell]]:
    """The cells of each model and size, one a seed."""
    return {
        (name, size): [_cell(name, size, seed, ask) for seed in ask.seeds]
        for size in SIZES[ask.budget]
        for name in _MODELS
    }


def _cell(name: str, size: str, seed: int, ask: Ask) -> Cell:
    base, chosen = LANGUAGE[ask.budget].model, SIZES[ask.budget][size]
    config = variant({**base, **chosen.model}, ARCHITECTURES[name])
    # Table 5 has trained the models of its own size.
    is_known = config == variant(base, ARCHITECTURES[name]) and not chosen.training
    return language_cell(
        slug(name) if is_known else f"{slug(name)}-{slug(size)}",
        config,
        seed,
        ask,
        training=chosen.training,
    )


def _find(ask: Ask, records: Records) -> Findings | None:
    sets = LANGUAGE[ask.budget].sets
    found = {key: rows for key, cells in _cells(ask).items() if (rows := results(cells, records))}
    if not found:
        return None
    bits = {
        heading: {
            key: Spread({seed: row["bits_per_byte"][each]["windows"] for seed, row in rows.items()})
            for key, rows in found.items()
        }
        for heading, each in sets.items()
    }
    sizes = {key: next(iter(rows.values()))["parameters"] for key, rows in found.items()}
    table = [
        [f"{name}, {size}", f"{sizes[name, size]:,}"]
        + [bits[heading][name, size].text() for heading in sets]
        for name, size in found
    ]
    return Findings(
        title="Figure 5: loss against size",
        tables=[
            Table(title="Bits per byte", columns=["model", "parameters", *sets], rows=table),
            _paper_table(),
        ],
        panels=[_panel(heading, bits[heading], sizes) for heading in sets],
        notes=[
            "All sizes are trained on equally many bytes at one learning rate. The paper prints no "
            "numbers for this figure: its rows are what readers saw in the plot."
        ],
    )


def _paper_table() -> Table:
    rows = [
        [size, f"{ours:.1f}", f"{theirs:.1f}", f"{math.log2(ours) - math.log2(theirs):+.3f}"]
        for size, (ours, theirs) in FIGURE_5.items()
    ]
    return Table(
        title="The paper's: perplexity",
        columns=["size", *_MODELS, "difference in bits"],
        rows=rows,
    )


def _panel(
    heading: str, bits: dict[tuple[str, str], Spread], sizes: dict[tuple[str, str], int]
) -> Panel:
    lines = []
    for name in _MODELS:
        keys = [key for key in bits if key[0] == name]
        lines.append(spread_line(name, [sizes[key] for key in keys], [bits[key] for key in keys]))
    return Panel(
        title=heading, x_label="parameters", y_label="bits per byte", lines=lines, log_x=True
    )


FIGURE5 = Study(
    cells=lambda ask: in_turn(_cells(ask).values()),
    find=_find,
    texts=language_texts,
)
