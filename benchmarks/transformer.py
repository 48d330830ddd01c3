"""The rival: a Transformer of a RetNet's size, with all that makes one decode fast in plain torch.

Pre-norm, rotary positions, SwiGLU, no biases, a tied head; merged projections; and a key-value
cache that is allocated once, written in place, and read only as far as it is filled. A layer has
12 D^2 parameters, as a RetNet's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a Transformer; the head size is d_model / num_heads."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int

    @property
    def head_size(self) -> int:
        """Numbers in a key, or a value, of one head."""
        return self.d_model // self.num_heads

    @property
    def ffn_size(self) -> int:
        """8/3 D: SwiGLU's three matrices then have the 8 D^2 parameters of the usual two."""
        return round(8 * self.d_model / 3)


@dataclass
class KeyValueCache:
    """Keys and values of `filled` tokens, and room for more; a model given it changes it in place.

    keys, values: [L, B, H, room, K]
    """

    keys: Tensor
    values: Tensor
    filled: int = 0

    @classmethod
    def allocate(
        cls, config: TransformerConfig, batch_size: int, room: int, dtype: torch.dtype
    ) -> "KeyValueCache":
        """An empty cache; its memory is touched here, not by the first calls that fill it."""
        shape = (config.num_layers, batch_size, config.num_heads, room, config.head_size)
        return cls(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))

    @property
    def num_bytes(self) -> int:
        """Bytes of the filled part."""
        numbers = (
            self.keys[:, :, :, : self.filled].numel() + self.values[:, :, :, : self.filled].numel()
        )
        return numbers * self.keys.element_size()


class Attention(nn.Module):
    """Causal softmax attention over the cache and the new tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: KeyValueCache, layer: int
    ) -> Tensor:
        """x: [B, T, D] -> [B, T, D]; adds T tokens to the cache. rotation: `rotation_table`'s."""
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        start, end = cache.filled, cache.filled + x.shape[1]
        cache.keys[layer, :, :, start:end] = rotate(k, rotation)
        cache.values[layer, :, :, start:end] = v
        keys, values = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
        attended = self._attend(rotate(q, rotation), keys, values)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        num_new, num_all = q.shape[2], keys.shape[2]
        if num_new in (1, num_all):
            return scaled_dot_product_attention(q, keys, values, is_causal=num_new > 1)
        # is_causal lines up the first query with the first key; here the last meets the last.
        visible = torch.ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
        return scaled_dot_product_attention(q, keys, values, attn_mask=visible)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed forward(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.d_model, eps=1e-5)
        self.gate_and_up = nn.Linear(config.d_model, 2 * config.ffn_size, bias=False)
        self.down = nn.Linear(config.ffn_size, config.d_model, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: KeyValueCache, layer: int
    ) -> Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        x = x + self.attention(self.attention_norm(x), rotation, cache, layer)
        gate, up = self.gate_and_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


class Transformer(nn.Module):
    """tokens -> logits of the token after the last one, with a cache."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.d_model) * INIT_STD)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.Parameter(torch.ones(config.d_model))

    def features(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """tokens: [B, T] int64, those after the cache's -> [B, T, D]; they are added to it."""
        room = cache.keys.shape[3]
        if cache.filled + tokens.shape[1] > room:
            raise ValueError(
                f"the cache has room for {room} tokens, got {tokens.shape[1]} after {cache.filled}"
            )
        x = embedding(tokens, self.embedding)
        rotation = rotation_table(cache.filled, tokens.shape[1], self.config.head_size, x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, cache, layer)
        cache.filled += tokens.shape[1]
        return rms_norm(x, self.norm.shape, self.norm, 1e-5)

    def logits(self, features: Tensor) -> Tensor:
        """features: [..., D] -> [..., vocab_size]."""
        return linear(features, self.embedding)

    def forward(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """tokens: [B, T] -> logits after the last of them, [B, vocab_size]."""
        return self.logits(self.features(tokens, cache)[:, -1])


def rotation_table(
    start: int, num_tokens: int, head_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions start, start + 1, ...: each [T, K]."""
    frequencies = 10000.0 ** -(torch.arange(0, head_size, 2) / head_size)
    angles = torch.arange(start, start + num_tokens)[:, None] * frequencies.repeat(2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x: [B, H, T, K], its pairs (j, j + K/2) turned by the angles of their positions."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
