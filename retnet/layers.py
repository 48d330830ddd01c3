"""Gated multi-scale retention (Eq. 8), the feed forward, and the block of both (Eq. 9)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import ModelConfig, NormKind
from retnet.ops.backends import prefers_kernels
from retnet.ops.precision import cast_for_products
from retnet.position import TokenContext, rotate


class MultiScaleRetention(nn.Module):
    """(swish(x W_G) . norm_h(retention(x W_Q, x W_K, x W_V))) W_O, a decay to each head (Eq. 8).

    The paper's ablations leave out the gate or the norm.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        keys, values = config.num_heads * config.key_size, config.num_heads * config.value_size
        self.q_proj = nn.Linear(config.d_model, keys, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, keys, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, values, bias=config.bias)
        self.g_proj = None
        if config.gate:
            self.g_proj = nn.Linear(config.d_model, values, bias=config.bias)
        self.out_proj = nn.Linear(values, config.d_model, bias=config.bias)
        self.head_norm: nn.Module = nn.Identity()
        if config.head_norm != "none":
            self.head_norm = make_norm(
                config.head_norm,
                config.value_size,
                config.head_norm_eps,
                affine=config.head_norm_affine,
            )

    def forward(
        self, x: Tensor, context: TokenContext, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D] and the state before [B, H, K, V] -> y [B, T, D] and the state after.

        With score_norm "paper" the state has one more value column, of the sums of the decayed
        keys.
        """
        # By their size, not their number: a process may hold some of the heads.
        keys, values = (-1, self.config.key_size), (-1, self.config.value_size)
        q, k = (project(x).unflatten(-1, keys) for project in (self.q_proj, self.k_proj))
        v = self.v_proj(x).unflatten(-1, values)
        q = rotate(q, context.query_rotation, self.config.rotary_pairing)
        k = rotate(k, context.key_rotation, self.config.rotary_pairing)
        if context.mask is not None:
            # Keys, not scores: a padded token must leave the state untouched.
            k, v = (y.masked_fill(~context.mask[..., None, None], 0) for y in (k, v))
        if self.config.score_norm == "paper":
            v = F.pad(v, (0, 1), value=1.0)
        out, state = context.retain(
            q, k, v, context.log_decay, state, segment_ids=context.segment_ids
        )
        gate = None if self.g_proj is None else self.g_proj(x)
        y = self._finished(self._normalised(out, context.score_scale), gate, x.dtype)
        return self.out_proj(y), state

    def _finished(self, out: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The retention outputs [B, T, H, V] after norm and gate [B, T, H V], side by side."""
        config = self.config
        is_plain = config.head_norm != "none" and not config.head_norm_affine
        if gate is not None and is_plain and prefers_kernels(out.device, out.dtype):
            from retnet.ops.triton.gating import norm_and_gate

            gate = gate.unflatten(2, out.shape[2:])
            return norm_and_gate(
                out.to(dtype), gate, config.head_norm, config.head_norm_eps
            ).flatten(2)
        y = self.head_norm(out).to(dtype).flatten(2)
        return y if gate is None else F.silu(gate) * y

    def _normalised(self, out: Tensor, score_scale: Tensor | None) -> Tensor:
        """The retention outputs over the configured score norm (section 2.2), [B, T, H, V].

        The paper's three normalisers together divide row n by max(|sum_m R_nm|, sqrt(Z_n)), where
        sum_m R_nm is the output of a value column of ones.
        """
        if score_scale is None:
            return out
        exact = out.to(score_scale.dtype)
        if self.config.score_norm == "decay":
            return (exact / score_scale).to(out.dtype)
        row_sum = exact[..., -1:].abs()
        return (exact[..., :-1] / torch.maximum(row_sum, score_scale)).to(out.dtype)


class FeedForward(nn.Module):
    """gelu(x W_1) W_2 (Eq. 9), or a gated form: (silu(x W_1) . x W_3) W_2, or gelu for silu.

    With `ffn_norm` there is a norm before W_2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.ffn_size, bias=config.bias)
        self.down_proj = nn.Linear(config.ffn_size, config.d_model, bias=config.bias)
        self.gate_proj = None
        if config.feed_forward != "gelu":
            self.gate_proj = nn.Linear(config.d_model, config.ffn_size, bias=config.bias)
        self.activation: Callable[[Tensor], Tensor] = (
            F.silu if config.feed_forward == "swiglu" else F.gelu
        )
        self.inner_norm = None
        if config.ffn_norm:
            self.inner_norm = make_norm(config.norm, config.ffn_size, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        hidden = self.up_proj(x)
        if self.gate_proj is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(self.gate_proj(x)) * hidden
        if self.inner_norm is not None:
            hidden = self.inner_norm(hidden)
        return self.down_proj(hidden)


class RetNetBlock(nn.Module):
    """Y = mixer(norm(X)) + X, then feed_forward(norm(Y)) + Y (Eq. 9).

    mixer: None for retention; or what is compared with it, called as mixer(x, context, state).
    """

    def __init__(self, config: ModelConfig, mixer: nn.Module | None = None) -> None:
        super().__init__()
        self.mixer_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.mixer = MultiScaleRetention(config) if mixer is None else mixer
        self.feed_forward_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, context: TokenContext, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D] and the mixer's state before -> the same after."""
        mixed, state = self.mixer(cast_for_products(self.mixer_norm(x)), context, state)
        x = x + self.dropout(mixed)
        transformed = self.feed_forward(cast_for_products(self.feed_forward_norm(x)))
        return x + self.dropout(transformed), state


def make_norm(kind: NormKind, size: int, eps: float, *, affine: bool = True) -> nn.Module:
    """A norm of the configured kind over the last axis, of this size."""
    if kind == "layernorm":
        return nn.LayerNorm(size, eps=eps, elementwise_affine=affine)
    return nn.RMSNorm(size, eps=eps, elementwise_affine=affine)
