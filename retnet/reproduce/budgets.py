"""How much of a study is done: the sizes, texts and lengths that a budget stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        held_out: the one that is read while they are trained; held_out_bytes: how much of it.
        sets: those that they are scored on: heading -> name.
        scoring: how, see `score_sets`.
    """

    model: Mapping[str, Any]
    training: Mapping[str, Any]
    text: str
    held_out: str
    held_out_bytes: int
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
        held_out_bytes=2_000,
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
        held_out_bytes=100_000,
        sets=_SMALL_SETS,
        scoring=_windows(100_000, 4_096, 256),
    ),
    "paper": LanguageBudget(
        model=_PAPER_MODEL,
        training={
            # The rate is that of the paper's 1.3B: it tells none for 200M.
            **_training(
                context=2_048, batch_size=256, steps=10_000, rate=6e-4, warmup=375, precision="bf16"
            ),
            "accumulate": 32,
        },
        text="train",
        held_out="validation",
        held_out_bytes=1_000_000,
        sets=_PAPER_SETS,
        scoring=_windows(10_000_000, 8_192, 2_048),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ContextBudget:
    """How models with contexts of different lengths are compared: apart from that, and from their
    batches, which make up for it, as language models are.

    Attributes:
        contexts: tokens in a window, ascending.
        read: with how many bytes the model of the longest context is read, ascending.
        tokens_per_step: the same for all.
        steps: of all.
        scored: bytes at the end of each passage of the longest context that count.
        num_bytes: of each set, in such passages.
    """

    contexts: tuple[int, ...]
    read: tuple[int, ...]
    tokens_per_step: int
    steps: int
    scored: int
    num_bytes: int


CONTEXT: dict[Budget, ContextBudget] = {
    "smoke": ContextBudget(
        contexts=(16, 32), read=(8, 32), tokens_per_step=64, steps=2, scored=8, num_bytes=2_000
    ),
    "small": ContextBudget(
        contexts=(512, 1_024, 2_048),
        read=(128, 256, 512, 1_024, 2_048),
        tokens_per_step=4_096,
        steps=500,
        scored=128,
        num_bytes=1_000_000,
    ),
    "paper": ContextBudget(
        contexts=(512, 1_024, 2_048),
        read=(128, 256, 512, 1_024, 2_048),
        tokens_per_step=2**19,
        steps=10_000,
        scored=128,
        num_bytes=10_000_000,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size of figure 5: what its model and its training have other than the budget's."""

    model: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)


def _paper_size(d_model: int, num_layers: int, rate: float) -> Size:
    """The paper's table 2 and 7: 4M tokens a step, 25,000 steps."""
    return Size(
        model={"d_model": d_model, "num_layers": num_layers, "num_heads": d_model // 256},
        training={
            "batch_size": 2_048,
            "accumulate": 1_024,
            "steps": 25_000,
            "optimizer": {"learning_rate": rate, "warmup_steps": 375},
        },
    )


SIZES: dict[Budget, dict[str, Size]] = {
    "smoke": {"d 32": Size(model={"d_model": 32}), "d 64": Size(model={"d_model": 64})},
    "small": {
        "d 64": Size(model={"d_model": 64, "num_heads": 2}),
        "d 96": Size(model={"d_model": 96, "num_heads": 3}),
        "d 128": Size(model={"d_model": 128, "num_heads": 4}),
        "d 192": Size(model={"d_model": 192, "num_heads": 6}),
    },
    "paper": {
        "1.3B": _paper_size(2_048, 24, 6e-4),
        "2.7B": _paper_size(2_560, 32, 3e-4),
        "6.7B": _paper_size(4_096, 32, 3e-4),
    },
}


@dataclass(frozen=True, kw_only=True)
class CostBudget:
    """What costs are measured of.

    Attributes:
        model: of all architectures, a `ModelConfig`'s fields.
        decoding: tokens before a step; training: tokens of a row.
        steps, rounds: how many steps are timed together, and how often.
    """

    model: Mapping[str, Any]
    decoding: tuple[int, ...]
    training: tuple[int, ...]
    steps: int
    rounds: int


COST: dict[Budget, CostBudget] = {
    "smoke": CostBudget(
        model={"d_model": 64, "num_layers": 1, "num_heads": 2},
        decoding=(64, 128),
        training=(64, 128),
        steps=2,
        rounds=2,
    ),
    "small": CostBudget(
        model={"d_model": 128, "num_layers": 4, "num_heads": 4},
        decoding=(2_048, 4_096, 8_192, 16_384, 32_768),
        training=(2_048, 4_096, 8_192, 16_384),
        steps=8,
        rounds=5,
    ),
    "paper": CostBudget(
        model=_PAPER_MODEL,
        decoding=(2_048, 4_096, 8_192, 16_384, 32_768),
        training=(2_048, 4_096, 8_192, 16_384),
        steps=8,
        rounds=5,
    ),
}


@dataclass(frozen=True, kw_only=True)
class DecodingBudget:
    """Figure 6: a RetNet and a Transformer of one size, at contexts and batch sizes.

    Attributes:
        model: of both, a `ModelConfig`'s fields.
        dtype: "bf16" or "fp32".
        lengths, batch_sizes: of all pairs of these.
        steps, rounds: how many steps are timed together, and how often.
    """

    model: Mapping[str, Any]
    dtype: str
    lengths: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    steps: int
    rounds: int


DECODING: dict[Budget, DecodingBudget] = {
    "smoke": DecodingBudget(
        model={"d_model": 64, "num_layers": 1, "num_heads": 2},
        dtype="fp32",
        lengths=(16, 32),
        batch_sizes=(1, 2),
        steps=2,
        rounds=2,
    ),
    "small": DecodingBudget(
        model={"vocab_size": 16_384, "d_model": 768, "num_layers": 12, "num_heads": 6},
        dtype="bf16",
        lengths=(1_024, 2_048, 4_096, 8_192),
        batch_sizes=(1, 2, 4, 8),
        steps=8,
        rounds=5,
    ),
    "paper": DecodingBudget(
        model={"vocab_size": 50_304, "d_model": 4096, "num_layers": 32, "num_heads": 16},
        dtype="bf16",
        lengths=(2_048, 3_072, 4_096, 5_120, 6_144, 7_168, 8_192),
        batch_sizes=(1, 2, 4, 8),
        steps=4,
        rounds=3,
    ),
}
