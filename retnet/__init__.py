"""Retentive networks: one mechanism in three exactly equal forms, with a state of constant size.

Every public name is imported when it is first asked for, so `import retnet` loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retnet.checkpoint import load_checkpoint, save_checkpoint
    from retnet.config import PRESETS, ModelConfig, preset
    from retnet.generation import generate, prefill, step
    from retnet.included import INCLUDED_MODEL
    from retnet.layers import FeedForward, MultiScaleRetention, RetNetBlock
    from retnet.loss import next_token_loss
    from retnet.model import RetNet, RetNetBackbone, RetNetState
    from retnet.ops import (
        combine_states,
        retention_chunkwise,
        retention_parallel,
        retention_recurrent,
    )
    from retnet.sampling import SamplingParams, sample
    from retnet.text import complete

__version__ = "0.1.0"

__all__ = [
    "INCLUDED_MODEL",
    "PRESETS",
    "FeedForward",
    "ModelConfig",
    "MultiScaleRetention",
    "RetNet",
    "RetNetBackbone",
    "RetNetBlock",
    "RetNetState",
    "SamplingParams",
    "combine_states",
    "complete",
    "generate",
    "load_checkpoint",
    "next_token_loss",
    "prefill",
    "preset",
    "retention_chunkwise",
    "retention_parallel",
    "retention_recurrent",
    "sample",
    "save_checkpoint",
    "step",
]

_NAMES_OF_MODULE = {
    "retnet.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "retnet.config": ("PRESETS", "ModelConfig", "preset"),
    "retnet.generation": ("generate", "prefill", "step"),
    "retnet.included": ("INCLUDED_MODEL",),
    "retnet.layers": ("FeedForward", "MultiScaleRetention", "RetNetBlock"),
    "retnet.loss": ("next_token_loss",),
    "retnet.model": ("RetNet", "RetNetBackbone", "RetNetState"),
    "retnet.ops": (
        "combine_states",
        "retention_chunkwise",
        "retention_parallel",
        "retention_recurrent",
    ),
    "retnet.sampling": ("SamplingParams", "sample"),
    "retnet.text": ("complete",),
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF_NAME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
