"""How much of a study is done: the sizes, texts and lengths that a budget stands for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retnet.config import PRESETS
from retnet.reproduce.config import Budget


@dataclass(frozen=True, kw_only=True)
class LanguageBudget:
    """How language models are compared.

    Attributes:
        model: of all of them, a `ModelConfig`'s fields.
        training: of all of them, a `TrainConfig`'s fields.
        text: the data set that they are trained on.
        held_out: the one that is read while they are trained.
        sets: those that they are scored on: heading -> name.
        scoring: how, see `score_sets`.
    """

    model: Mapping[str, Any]
    training: Mapping[str, Any]
    text: str
    held_out: str
    sets: Mapping[str, str]
    scoring: Mapping[str, Any]


_SMALL_SETS = {
    "WikiText-2": "wikitext-2-validation",
    "Gutenberg": "gutenberg",
    "QMSum": "qmsum",
}
_SMOKE_SETS = {"json": "stdlib-json", "email": "stdlib-email"}
_PAPER_SETS = {
    "in domain": "validation",
    "PG22": "pg22",
    "QMSum": "qmsum",
    "GovReport": "govreport",
    "SummScreen": "summscreen",
}

_PAPER_MODEL = {
    name: value
    for name, value in PRESETS["200m"].to_dict().items()
    if name in ("d_model", "num_layers", "num_heads", "dropout")
}


def _training(
    *, context: int, batch_size: int, steps: int, rate: float, warmup: int, precision: str
) -> dict[str, Any]:
    return {
        "context": context,
        "batch_size": batch_size,
        "steps": steps,
        "precision": precision,
        "validation_bytes": 65_536,
        "optimizer": {"learning_rate": rate, "warmup_steps": warmup},
    }


def _windows(num_bytes: int, passage: int, window: int) -> dict[str, Any]:
    return {
        "protocol": "windows",
        "num_bytes": num_bytes,
        "passage": passage,
        "window": window,
        "scored": window // 2,
    }


LANGUAGE: dict[Budget, LanguageBudget] = {
    "smoke": LanguageBudget(
        model={"d_model": 64, "num_layers": 1, "num_heads": 2},
        training=_training(
            context=32, batch_size=2, steps=3, rate=1e-3, warmup=1, precision="fp32"
        ),
        text="stdlib-email",
        held_out="stdlib-json",
        sets=_SMOKE_SETS,
        scoring=_windows(1_000, 100, 32),
    ),
    "small": LanguageBudget(
        model={"d_model": 128, "num_layers": 4, "num_heads": 4},
        training=_training(
            context=256, batch_size=8, steps=1_000, rate=4e-3, warmup=100, precision="fp32"
        ),
        text="wikitext-2",
        held_out="wikitext-2-validation",
        sets=_SMALL_SETS,
        scoring=_windows(100_000, 4_096, 256),
    ),
    "paper": LanguageBudget(
        model=_PAPER_MODEL,
        training=_training(
            context=2_048, batch_size=256, steps=10_000, rate=6e-4, warmup=375, precision="bf16"
        ),
        text="train",
        held_out="validation",
        sets=_PAPER_SETS,
        scoring=_windows(10_000_000, 65_536, 2_048),
    ),
}
