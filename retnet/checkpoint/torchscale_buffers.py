"""The two buffers of a torchscale model: what they say of the rules, and the rules as buffers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retnet.checkpoint.files import CheckpointError, all_finite
from retnet.config import DecayRule, ModelConfig, RotaryFrequencies
from retnet.position import log_decays, rotary_angles

ANGLE, DECAY = BUFFERS = ("retnet_rel_pos.angle", "retnet_rel_pos.decay")


def rules_of(weights: Mapping[str, Tensor], num_heads: int, default: DecayRule) -> dict[str, Any]:
    """The settings `decay` and `rotary_frequencies` that the buffers among some weights hold.

    default: the decay where there is no buffer of it.
    """
    rules: dict[str, Any] = {"decay": default}
    if DECAY in weights:
        rules["decay"] = _decay_of(weights[DECAY], num_heads)
    if ANGLE in weights:
        rules["rotary_frequencies"] = _frequencies_of(weights[ANGLE])
    return rules


def buffers_of(config: ModelConfig) -> dict[str, Tensor]:
    """The buffers of a model, fp32: log decays [H], and angles [K] with each of them twice."""
    return {ANGLE: _stored_angles(config), DECAY: _stored_decays(config)}


def _decay_of(stored: Tensor, num_heads: int) -> DecayRule | list[float]:
    """The rule that stored log decays [H] follow, or their gammas."""
    if stored.shape != (num_heads,):
        raise CheckpointError(
            f"{DECAY} has the shape {list(stored.shape)} and decoder_retention_heads says "
            f"{num_heads}; pass the configuration that belongs to these weights"
        )
    if not all_finite(stored):
        raise CheckpointError(f"{DECAY} holds NaN or infinity, expected log(gamma) of each head")
    rules: tuple[DecayRule, ...] = ("equation8", "linspace", "wide")
    for rule in rules:
        if _agree(stored, log_decays(rule, num_heads)):
            return rule
    return stored.double().exp().tolist()


def _frequencies_of(stored: Tensor) -> RotaryFrequencies:
    """The frequencies that stored angles [K] are, each of which is there twice."""
    schedules: tuple[RotaryFrequencies, ...] = ("torchscale", "rope")
    for schedule in schedules:
        if _agree(stored, _angles(stored.numel(), schedule)):
            return schedule
    raise CheckpointError(f"{ANGLE} holds angles of no schedule that is known here")


def _angles(key_size: int, frequencies: RotaryFrequencies) -> Tensor:
    return rotary_angles(torch.ones(1), key_size, frequencies)[0].repeat_interleave(2)


def _stored_angles(config: ModelConfig) -> Tensor:
    if config.rotary_frequencies == "rope":
        return _angles(config.key_size, "rope").float()
    # To the bit as torchscale has them: in fp32 from the beginning.
    exponents = torch.linspace(0, 1, config.key_size // 2, dtype=torch.float32, device="cpu")
    return (1.0 / 10_000**exponents).repeat_interleave(2)


def _stored_decays(config: ModelConfig) -> Tensor:
    if config.decay != "equation8":
        return log_decays(config.decay, config.num_heads).float()
    heads = torch.arange(config.num_heads, dtype=torch.float32, device="cpu")
    return (1 - 2 ** (-5 - heads)).log()  # to the bit as torchscale has them


def _agree(stored: Tensor, exact: Tensor) -> bool:
    """Whether stored constants are these, rounded by bf16 or by fp32's 1 - gamma."""
    return stored.shape == exact.shape and torch.allclose(
        stored.double().cpu(), exact, rtol=0.01, atol=1.2e-7
    )
