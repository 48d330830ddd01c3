"""Decay and rotation: pure functions of heads and positions, computed in fp64 and cast last.

Nothing here is a module or a buffer, so that `.to(bfloat16)` or a build on the meta device cannot
spoil it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, log, log1p

import torch
from torch import Tensor

from retnet.config import DecayRule, ModelConfig, RotaryFrequencies, RotaryPairing
from retnet.ops.reference import segment_runs

Retention = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TokenContext:
    """What every layer knows about the tokens of one call; made once a call, by `RetNet`.

    R is B, or 1 where all rows are alike.

    log_decay: [H] fp64 on the CPU
    query_rotation, key_rotation: [R, T, 1, K/2, 2], cosine and sine, the latter times K^-0.5
    score_scale: [R, T, H, 1], sqrt(Z_n) where the configuration divides by it, else None
    mask: [B, T] bool, True for tokens and False for padding, or None
    segment_ids: [B, T] or None
    retain: the form of retention, called as `retain(q, k, v, log_decay, state, segment_ids=...)`
    """

    log_decay: Tensor
    query_rotation: Tensor
    key_rotation: Tensor
    score_scale: Tensor | None
    mask: Tensor | None
    segment_ids: Tensor | None
    retain: Retention

    def to(self, device: torch.device | str | int) -> "TokenContext":
        """The same on another device: what accelerate calls where layers lie on several."""
        names = ("query_rotation", "key_rotation", "score_scale", "mask", "segment_ids")
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{name: x.to(device) for name, x in found.items() if x is not None})

    def for_heads(self, heads: slice) -> "TokenContext":
        """The same for a layer that has only some of the heads."""
        scale = None if self.score_scale is None else self.score_scale[:, :, heads]
        return replace(self, log_decay=self.log_decay[heads], score_scale=scale)


def log_decays(rule: DecayRule | Sequence[float], num_heads: int) -> Tensor:
    """log(gamma) of each head, [H] fp64 on the CPU (section 2.2, Eq. 8, and section 3.1)."""
    heads = range(num_heads)
    if rule == "equation8":
        values = [log1p(-(2.0 ** (-5 - head))) for head in heads]
    elif rule == "linspace" or rule == "wide":
        first, last = log(1 / 32 if rule == "linspace" else 1 / 2), log(1 / 512)
        step = (last - first) / max(num_heads - 1, 1)
        values = [log1p(-exp(first + head * step)) for head in heads]
    elif rule == "none":
        values = [0.0] * num_heads
    else:
        values = [log(gamma) for gamma in rule]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def decay_sum(log_decay: Tensor, positions: Tensor) -> Tensor:
    """Z_n = sum of gamma^i over i = 0..n, for positions n [..., T]: [..., T, H] fp64."""
    count = positions[..., None].double() + 1
    lg = log_decay.to(positions.device)
    without_decay = lg == 0
    geometric = _half_expm1(count * lg) / _half_expm1(torch.where(without_decay, -1.0, lg))
    return torch.where(without_decay, count, geometric)


def _half_expm1(x: Tensor) -> Tensor:
    """(exp(x) - 1) / 2 for x <= 0, exact for tiny x."""
    # Not torch.expm1: ONNX has none, and exp(x) - 1 in its place is 0 for the slowest heads.
    tanh = torch.tanh(x / 2)
    return tanh / (1 - tanh)


def rotary_angles(positions: Tensor, key_size: int, frequencies: RotaryFrequencies) -> Tensor:
    """The angle of each position [..., T] and pair of key entries: [..., T, K/2] radians, fp64."""
    pairs = key_size // 2
    exponent = torch.arange(pairs, dtype=torch.float64, device=positions.device)
    exponent = exponent / (max(pairs - 1, 1) if frequencies == "torchscale" else pairs)
    return positions[..., None].double() * 10_000.0**-exponent


def rotate(x: Tensor, rotation: Tensor, pairing: RotaryPairing) -> Tensor:
    """Theta of Eq. 5: pairs of x [B, T, H, K], as complex numbers, times [R, T, 1, K/2, 2]."""
    # Compilers and exporters know real numbers best; eagerly, one complex product is far quicker.
    turn = rotate_real if torch.compiler.is_compiling() else rotate_complex
    return turn(x.to(rotation.dtype), rotation, pairing).to(x.dtype)


def rotate_complex(x: Tensor, rotation: Tensor, pairing: RotaryPairing) -> Tensor:
    """`rotate` in complex numbers, for x in the dtype of the rotation."""
    turn = torch.view_as_complex(rotation)
    if pairing == "interleaved":
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn
        return torch.view_as_real(turned).flatten(-2)
    turned = torch.complex(*x.chunk(2, dim=-1)) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def rotate_real(x: Tensor, rotation: Tensor, pairing: RotaryPairing) -> Tensor:
    """`rotate_complex` written out in real numbers."""
    cos, sin = rotation.unbind(dim=-1)
    if pairing == "interleaved":
        real, imaginary = x.unflatten(-1, (-1, 2)).unbind(dim=-1)
    else:
        real, imaginary = x.chunk(2, dim=-1)
    turned = real * cos - imaginary * sin, real * sin + imaginary * cos
    if pairing == "interleaved":
        return torch.stack(turned, dim=-1).flatten(-2)
    return torch.cat(turned, dim=-1)


def token_positions(
    tokens: Tensor, first: Tensor | None, mask: Tensor | None, segment_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The position of each token in its segment, and of the token after the last.

    Args:
        tokens: [B, T], only its shape and device are read.
        first: [B] int64, the position of the row's first token; None for 0.
        mask: [B, T] bool; padding has no position of its own and gets the nearest.
        segment_ids: [B, T]; a new segment starts again at 0.

    Returns:
        [B, T] int64 ([1, T] where all rows are alike), and [B] int64.
    """
    batch, length = tokens.shape
    after = torch.zeros(batch, dtype=torch.int64, device=tokens.device) if first is None else first
    if mask is None and segment_ids is None:
        steps = torch.arange(length, device=tokens.device)
        return (steps[None] if first is None else first[:, None] + steps), after + length
    if length == 0:
        return torch.zeros_like(tokens, dtype=torch.int64), after
    real = torch.ones_like(tokens, dtype=torch.int64) if mask is None else mask.long()
    runs = segment_runs(segment_ids, tokens)
    seen = real.cumsum(dim=1)
    starts = runs.diff(dim=1, prepend=runs[:, :1]).ne(0)
    seen_before_segment = torch.where(starts, seen - real, 0).cummax(dim=1).values
    next_position = seen - seen_before_segment + torch.where(runs == 0, after[:, None], 0)
    return (next_position - 1).clamp(min=0), next_position[:, -1]


def make_context(
    config: ModelConfig,
    positions: Tensor,
    *,
    mask: Tensor | None,
    segment_ids: Tensor | None,
    retain: Retention,
    dtype: torch.dtype,
) -> TokenContext:
    """The context of tokens at positions [R, T], for layers that compute in this dtype."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    log_decay = log_decays(config.decay, config.num_heads)
    angles = rotary_angles(positions, config.key_size, config.rotary_frequencies)[:, :, None]
    rotation = torch.stack([angles.cos().to(dtype), angles.sin().to(dtype)], dim=-1)
    score_scale = None
    if config.score_norm != "none":
        score_scale = decay_sum(log_decay, positions).sqrt().to(dtype)[..., None]
    return TokenContext(
        log_decay=log_decay,
        query_rotation=rotation,
        key_rotation=rotation * config.key_size**-0.5,
        score_scale=score_scale,
        mask=mask,
        segment_ids=segment_ids,
        retain=retain,
    )
