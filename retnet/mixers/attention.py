"""Softmax attention with rotary positions, and its cache of keys and values."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import ModelConfig
from retnet.mixers.base import Mixer
from retnet.position import TokenContext, rotate


class SoftmaxAttention(Mixer):
    """softmax(q k^T K^-0.5 + causal mask) v in each head, by torch's fused attention.

    The state is a cache that grows with every token, [B, tokens, H K + H V + 1] in the dtype of x:
    rotated keys, values, and 1 where there is a token, 0 where there is padding.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self._keys = config.num_heads * config.key_size
        self._values = config.num_heads * config.value_size
        self.q_proj = nn.Linear(config.d_model, self._keys, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, self._keys, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, self._values, bias=config.bias)
        self.out_proj = nn.Linear(self._values, config.d_model, bias=config.bias)

    def forward(
        self, x: Tensor, context: TokenContext, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer`. Documents packed in a row see nothing of each other."""
        batch, length, _ = x.shape
        heads, pairing = (self.config.num_heads, -1), self.config.rotary_pairing
        q = rotate(self.q_proj(x).unflatten(-1, heads), context.query_rotation, pairing)
        # The rotation of keys has their scale, K^-0.5.
        k = rotate(self.k_proj(x).unflatten(-1, heads), context.key_rotation, pairing)
        real = x.new_ones(batch, length, 1)
        if context.mask is not None:
            real = context.mask[..., None].to(x.dtype)
        new = torch.cat([k.flatten(2), self.v_proj(x), real], dim=-1)
        state = new if state is None else torch.cat([state.to(x.dtype), new], dim=1)
        keys, values, real = state.split([self._keys, self._values, 1], dim=-1)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys.unflatten(-1, heads).transpose(1, 2),
            values.unflatten(-1, heads).transpose(1, 2),
            attn_mask=self._visible(context, length, real[..., 0] > 0),
            is_causal=self._is_plain(context, length, state),
            scale=1.0,
        )
        state = self._last_segment(state, context)
        return self.out_proj(y.transpose(1, 2).flatten(2)), state

    def _is_plain(self, context: TokenContext, length: int, state: Tensor) -> bool:
        """Whether each token sees just those before it, of this call."""
        return length == state.shape[1] and context.mask is None and context.segment_ids is None

    def _visible(self, context: TokenContext, length: int, real: Tensor) -> Tensor | None:
        """[B, 1, T, S] bool: which of the S tokens in the cache each of the last T sees."""
        total = real.shape[1]
        if length == total and context.mask is None and context.segment_ids is None:
            return None
        places = torch.arange(total, device=real.device)
        causal = places[None, :] <= places[total - length :, None]
        visible = causal & real[:, None, :]
        if context.segment_ids is not None:
            segments = _with_those_before(context.segment_ids, total)
            visible = visible & (segments[:, None, :] == segments[:, total - length :, None])
        # A row of padding sees itself, for a softmax of nothing is no number.
        return (visible | (places[None, :] == places[total - length :, None]))[:, None]

    def _last_segment(self, state: Tensor, context: TokenContext) -> Tensor:
        """The cache without what the next token does not see."""
        if context.segment_ids is None:
            return state
        segments = _with_those_before(context.segment_ids, state.shape[1])
        kept = (segments == segments[:, -1:]).to(state.dtype)
        return torch.cat([state[..., :-1], state[..., -1:] * kept[..., None]], dim=-1)


def _with_those_before(segment_ids: Tensor, total: int) -> Tensor:
    """Segments [B, total] of all in the cache: what was there belongs to the first one."""
    before = segment_ids[:, :1].expand(-1, total - segment_ids.shape[1])
    runs = segment_ids.diff(dim=1, prepend=segment_ids[:, :1]).ne(0).cumsum(dim=1)
    return torch.cat([torch.zeros_like(before), runs], dim=1)
