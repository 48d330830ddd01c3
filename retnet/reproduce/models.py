"""The models that are compared: the paper's architectures and ablations, at equal parameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from retnet.config import ModelConfig
from retnet.model import RetNet

# Widths are multiples of it, so that products stay fast.
_STEP = 8

# Name in tables -> what a configuration changes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "RetNet": {},
    "Transformer": {"mixer": "attention"},
    "Linear Transformer": {"mixer": "linear"},
    "RWKV": {"mixer": "rwkv"},
    "H3": {"mixer": "h3"},
    "Hyena": {"mixer": "hyena"},
}


def ablations(num_heads: int) -> dict[str, dict[str, Any]]:
    """The paper's table 6, for a model of so many heads."""
    return {
        "RetNet": {},
        "- swish gate": {"gate": False},
        "- GroupNorm": {"head_norm": "none"},
        "- gamma decay": {"decay": "none"},
        "- multi-scale decay": {"decay": [127 / 128] * num_heads},
        "reduce head dimension": {"num_heads": 4 * num_heads},
    }


def count_parameters(config: ModelConfig) -> int:
    """The parameters of a model, those of its embedding and norms too, without making it."""
    with torch.device("meta"):
        model = RetNet(config)
    return sum(weight.numel() for weight in model.parameters())


def with_parameters(config: ModelConfig, target: int) -> ModelConfig:
    """A configuration with the feed forward's width at which it comes nearest to so many
    parameters, a multiple of 8.

    Raises ValueError where even the narrowest has more.
    """
    per_column = count_parameters(replace(config, ffn_size=2)) - count_parameters(
        replace(config, ffn_size=1)
    )
    without = count_parameters(replace(config, ffn_size=1)) - per_column
    width = _STEP * round((target - without) / per_column / _STEP)
    if width < _STEP:
        raise ValueError(
            f"a {config.mixer} mixer alone has {without:,} parameters, more than the {target:,} "
            "that it is to be compared at"
        )
    return replace(config, ffn_size=width)


def variant(base: Mapping[str, Any], changes: Mapping[str, Any]) -> ModelConfig:
    """A model that differs from another in some settings and, within 2 %, in no parameters."""
    plain = ModelConfig(**base)
    config, target = ModelConfig(**{**base, **changes}), count_parameters(plain)
    if abs(count_parameters(config) - target) <= 0.005 * target:
        return config
    return with_parameters(config, target)
