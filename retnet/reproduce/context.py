"""Table 8: the last bytes of passages, for models that were trained with different contexts."""

import math

from retnet.reproduce.budgets import CONTEXT, LANGUAGE
from retnet.reproduce.cells import Cell
from retnet.reproduce.findings import (
    Check,
    Findings,
    Panel,
    Spread,
    Table,
    check_seeds,
    spread_line,
)
from retnet.reproduce.language_cells import language_cell, language_texts
from retnet.reproduce.models import ARCHITECTURES, variant
from retnet.reproduce.paper import TABLE_8
from retnet.reproduce.study import Ask, Records, Study, in_turn, results, slug

_MODELS = ("RetNet", "Transformer")


def _cells(ask: Ask) -> dict[tuple[str, int], list[Cell]]:
    """The cells of each model and context, one a seed."""
    return {
        (name, context): [_cell(name, context, seed, ask) for seed in ask.seeds]
        for context in CONTEXT[ask.budget].contexts
        for name in _MODELS
    }


def _cell(name: str, context: int, seed: int, ask: Ask) -> Cell:
    budget = CONTEXT[ask.budget]
    return language_cell(
        f"{slug(name)}-context{context}",
        variant(LANGUAGE[ask.budget].model, ARCHITECTURES[name]),
        seed,
        ask,
        training={
            "context": context,
            "batch_size": budget.tokens_per_step // context,
            "steps": budget.steps,
        },
        scoring={
            "protocol": "last",
            "num_bytes": budget.num_bytes,
            "passage": budget.contexts[-1],
            "window": context,
            "scored": budget.scored,
        },
    )


Bits = dict[tuple[str, int], Spread]


def _find(ask: Ask, records: Records) -> Findings | None:
    budget, sets = CONTEXT[ask.budget], LANGUAGE[ask.budget].sets
    found = {key: rows for key, cells in _cells(ask).items() if (rows := results(cells, records))}
    if not found:
        return None
    bits = {
        heading: {
            key: Spread({seed: row["bits_per_byte"][name]["windows"] for seed, row in rows.items()})
            for key, rows in found.items()
        }
        for heading, name in sets.items()
    }
    return Findings(
        title="Table 8: context length",
        tables=[_table(heading, of_set, budget.contexts) for heading, of_set in bits.items()]
        + [_paper_table()],
        panels=[_panel(heading, of_set) for heading, of_set in bits.items()],
        checks=[
            check
            for heading, of_set in bits.items()
            for name in _MODELS
            for check in _falls(heading, name, of_set, budget.contexts)
        ],
        notes=[
            f"Each model was trained on {budget.tokens_per_step * budget.steps:,} bytes in windows "
            f"of its context. The last {budget.scored} bytes of passages of "
            f"{budget.contexts[-1]:,} are scored, each read with as much before them as the "
            "context holds.",
            'A claim "holds" where it does for each seed.',
        ],
    )


def _table(heading: str, bits: Bits, contexts: tuple[int, ...]) -> Table:
    return Table(
        title=f"{heading}: bits per byte by context",
        columns=["model", *(f"{context:,}" for context in contexts)],
        rows=[
            [
                name,
                *(
                    bits[name, context].text() if (name, context) in bits else "-"
                    for context in contexts
                ),
            ]
            for name in _MODELS
        ],
    )


def _paper_table() -> Table:
    """The paper's perplexities, as bits a token, and how much each context is better by."""
    rows = []
    for name, perplexities in TABLE_8.items():
        logs = [math.log2(each) for each in perplexities]
        rows.append([name, *(f"{bits:.3f}" for bits in logs), f"{logs[0] - logs[-1]:.3f}"])
    return Table(
        title="The paper's, of another size and text: bits per token by context",
        columns=["model", "512", "1,024", "2,048", "gained"],
        rows=rows,
    )


def _panel(heading: str, bits: Bits) -> Panel:
    lines = []
    for name in _MODELS:
        places = sorted(context for model, context in bits if model == name)
        if places:
            lines.append(spread_line(name, places, [bits[name, context] for context in places]))
    return Panel(title=heading, x_label="context", y_label="bits per byte", lines=lines, log_x=True)


def _falls(heading: str, name: str, bits: Bits, contexts: tuple[int, ...]) -> list[Check]:
    """Whether the loss falls from the shortest to the longest context."""
    short, long = (bits.get((name, context)) for context in (contexts[0], contexts[-1]))
    return check_seeds(
        f"{heading}, {name}: less at {contexts[-1]:,} than at {contexts[0]:,}",
        long.minus(short) if long and short else None,
        lambda difference: difference < 0,
        unit="bits",
    )


TABLE8 = Study(
    cells=lambda ask: in_turn(_cells(ask).values()),
    find=_find,
    texts=language_texts,
)
