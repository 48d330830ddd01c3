"""Cells that train language models, as several studies want them."""

from collections.abc import Mapping
from typing import Any

from retnet.config import ModelConfig
from retnet.reproduce.budgets import LANGUAGE
from retnet.reproduce.cells import Cell
from retnet.reproduce.language import measure_language_model
from retnet.reproduce.study import Ask
from retnet.reproduce.texts import TrainingText


def language_cell(
    name: str,
    config: ModelConfig,
    seed: int,
    ask: Ask,
    *,
    training: Mapping[str, Any] | None = None,
    scoring: Mapping[str, Any] | None = None,
) -> Cell:
    """A model trained from a seed and scored as the budget says.

    name: a plain file name. training: changes to what the budget says; scoring: in place of it.
    """
    budget = LANGUAGE[ask.budget]
    return Cell(
        key=f"language-{name}-seed{seed}",
        measure=measure_language_model,
        settings={
            "model": config.to_dict(),
            "training": {**budget.training, **(training or {}), "seed": seed},
            "text": ask.describe(budget.text)._asdict(),
            "scoring": dict(scoring or budget.scoring),
            "sets": [ask.describe(each)._asdict() for each in budget.sets.values()],
        },
    )


def language_texts(ask: Ask) -> list[TrainingText]:
    """What language models are trained on."""
    budget = LANGUAGE[ask.budget]
    return [TrainingText(budget.text, budget.held_out, budget.held_out_bytes)]
