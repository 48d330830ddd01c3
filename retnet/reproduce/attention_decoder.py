"""The Transformer as one would decode it: a cache that is allocated once and written in place."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.layers import RetNetBlock
from retnet.mixers import SoftmaxAttention
from retnet.model import RetNet
from retnet.ops import retention_chunkwise
from retnet.position import TokenContext, make_context, rotate


@dataclass
class KeyValueCache:
    """Keys and values of `filled` tokens, and room for more: each [L, B, H, room, K]."""

    keys: Tensor
    values: Tensor
    filled: int = 0

    @property
    def num_bytes(self) -> int:
        """Of the part that is filled."""
        numbers = 2 * self.keys[..., : self.filled, :].numel()
        return numbers * self.keys.element_size()


class AttentionDecoder:
    """Decodes a model of softmax attention, token by token, as `retnet.step` does but faster.

    Projections of a layer are one matrix, and the cache is changed in place.

    Raises:
        ValueError: for a model with another mixer.
    """

    def __init__(self, model: RetNet) -> None:
        if model.config.mixer != "attention":
            raise ValueError(f"the mixer must be 'attention', got {model.config.mixer!r}")
        self.model = model
        self._projections = [self._merged(_block(layer)) for layer in model.backbone.layers]

    def _merged(self, block: RetNetBlock) -> Tensor:
        mixer = _attention(block)
        linears = (mixer.q_proj, mixer.k_proj, mixer.v_proj)
        return torch.cat([linear.weight.detach() for linear in linears])

    def new_cache(self, batch_size: int, room: int) -> KeyValueCache:
        """An empty cache, whose memory is touched here."""
        config = self.model.config
        shape = (config.num_layers, batch_size, config.num_heads, room, config.key_size)
        dtype = self.model.backbone.embed_tokens.weight.dtype
        return KeyValueCache(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))

    @torch.inference_mode()
    def step_(self, tokens: Tensor, cache: KeyValueCache) -> Tensor:
        """Tokens [B] int64 -> the scores of the next ones [B, vocab_size]; the cache grows."""
        config, backbone = self.model.config, self.model.backbone
        x = backbone.embed(tokens[:, None])
        context = make_context(
            config,
            torch.tensor([[cache.filled]]),
            mask=None,
            segment_ids=None,
            retain=retention_chunkwise,
            dtype=x.dtype,
        )
        for layer, module in enumerate(backbone.layers):
            block = _block(module)
            x = x + self._attend(layer, block, x, context, cache)
            x = x + block.feed_forward(block.feed_forward_norm(x))
        cache.filled += 1
        return self.model.logits(backbone.norm(x[:, 0]))

    def _attend(
        self, layer: int, block: RetNetBlock, x: Tensor, context: TokenContext, cache: KeyValueCache
    ) -> Tensor:
        config, end = self.model.config, cache.filled + 1
        merged = F.linear(block.mixer_norm(x), self._projections[layer])
        q, k, v = merged.unflatten(-1, (3, config.num_heads, -1)).unbind(dim=2)
        q = rotate(q, context.query_rotation, config.rotary_pairing)
        k = rotate(k, context.key_rotation, config.rotary_pairing)  # with the scale of keys
        cache.keys[layer, :, :, end - 1] = k[:, 0]
        cache.values[layer, :, :, end - 1] = v[:, 0]
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            cache.keys[layer, :, :, :end],
            cache.values[layer, :, :, :end],
            scale=1.0,
        )
        return _attention(block).out_proj(y.transpose(1, 2).flatten(2))


def _block(module: nn.Module) -> RetNetBlock:
    assert isinstance(module, RetNetBlock)
    return module


def _attention(block: RetNetBlock) -> SoftmaxAttention:
    assert isinstance(block.mixer, SoftmaxAttention)
    return block.mixer
