"""Table 8: the last bytes of passages by how much was read before them.

The paper does not say whether it trained a model for each context or read one model's passages with
each. Here is both.
"""

import math
from collections.abc import Mapping

from retnet.reproduce.budgets import CONTEXT, LANGUAGE
from retnet.reproduce.cells import Cell, Values
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
    longest = budget.contexts[-1]
    scoring = {
        "protocol": "last",
        "num_bytes": budget.num_bytes,
        "passage": longest,
        "window": context,
        "scored": budget.scored,
    }
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
        scoring={**scoring, "contexts": list(budget.read)} if context == longest else scoring,
    )


Bits = dict[tuple[str, int], Spread]  # by model and context


def _find(ask: Ask, records: Records) -> Findings | None:
    budget, sets = CONTEXT[ask.budget], LANGUAGE[ask.budget].sets
    found = {key: rows for key, cells in _cells(ask).items() if (rows := results(cells, records))}
    if not found:
        return None
    longest = budget.contexts[-1]
    trained, read = "trained with", f"trained with {longest:,}, read with"
    tables, panels, checks = list[Table](), list[Panel](), list[Check]()
    for heading, name in sets.items():
        by_training = _by_training(found, name)
        by_reading = _by_reading(found, name, longest, budget.read)
        tables += [
            _table(f"{heading}, bits per byte: {trained}", by_training, budget.contexts),
            _table(f"{heading}, bits per byte: {read}", by_reading, budget.read),
        ]
        panels.append(_panel(heading, {trained: by_training, read: by_reading}))
        for model in _MODELS:
            checks += _falls(f"{heading}, {model}, {read}", model, by_reading, budget.read)
            checks += _falls(f"{heading}, {model}, {trained}", model, by_training, budget.contexts)
    return Findings(
        title="Table 8: context length",
        tables=[*(table for table in tables if table.rows), _paper_table()],
        panels=panels,
        checks=checks,
        notes=[
            f"Each model was trained on {budget.tokens_per_step * budget.steps:,} bytes in windows "
            f"of its context. The last {budget.scored} bytes of passages of {longest:,} are "
            "scored, each read with as many bytes, these among them, as the column says.",
            'A claim "holds" where it does for each seed.',
        ],
    )


def _by_training(found: Mapping[tuple[str, int], Mapping[int, Values]], name: str) -> Bits:
    """What models cost on a set that are read with as much as they were trained with."""
    return {
        key: Spread({seed: row["bits_per_byte"][name]["windows"] for seed, row in rows.items()})
        for key, rows in found.items()
    }


def _by_reading(
    found: Mapping[tuple[str, int], Mapping[int, Values]],
    name: str,
    trained: int,
    contexts: tuple[int, ...],
) -> Bits:
    """What the models of one context cost on a set by how much they are read with."""
    of_rows = {
        model: {seed: row["bits_per_byte"][name]["by_context"] for seed, row in rows.items()}
        for (model, context), rows in found.items()
        if context == trained
    }
    return {
        (model, context): Spread({seed: costs[str(context)] for seed, costs in of_seeds.items()})
        for model, of_seeds in of_rows.items()
        for context in contexts
    }


def _table(title: str, bits: Bits, contexts: tuple[int, ...]) -> Table:
    models = [model for model in _MODELS if any((model, context) in bits for context in contexts)]
    rows = [
        [
            model,
            *(
                bits[model, context].text() if (model, context) in bits else "-"
                for context in contexts
            ),
        ]
        for model in models
    ]
    columns = ["model", *(f"{context:,}" for context in contexts)]
    return Table(title=title, columns=columns, rows=rows)


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


def _panel(heading: str, kinds: Mapping[str, Bits]) -> Panel:
    lines = []
    for kind, bits in kinds.items():
        for name in _MODELS:
            places = sorted(context for model, context in bits if model == name)
            spreads = [bits[name, context] for context in places]
            if places:
                lines.append(spread_line(f"{name}, {kind}", places, spreads))
    return Panel(title=heading, x_label="context", y_label="bits per byte", lines=lines, log_x=True)


def _falls(what: str, name: str, bits: Bits, contexts: tuple[int, ...]) -> list[Check]:
    """Whether the loss falls from the shortest to the longest context."""
    short, long = (bits.get((name, context)) for context in (contexts[0], contexts[-1]))
    return check_seeds(
        f"{what} {contexts[-1]:,}: less than with {contexts[0]:,}",
        long.minus(short) if long and short else None,
        lambda difference: difference < 0,
        unit="bits",
    )


TABLE8 = Study(
    cells=lambda ask: in_turn(_cells(ask).values()),
    find=_find,
    texts=language_texts,
)
