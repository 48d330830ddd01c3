"""Hyena: gates and long convolutions whose filters a small network makes."""

from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import ModelConfig
from retnet.mixers.base import DocumentMixer
from retnet.mixers.convolution import causal_convolution
from retnet.ops.reference import accumulation_dtype

SHORT = 3  # tokens of the short filters
_EMBEDDING, _HIDDEN = 33, 64
_SPAN = 2048  # tokens over which the position runs from 0 to 1


class Hyena(DocumentMixer):
    """x_1 . (h * (x_2 . v)), with x_1, x_2, v projected and filtered over 3 tokens, h implicit.

    (Poli et al. 2023, arXiv 2302.10866, of order 2.) The long filter h is a network of sines of the
    position, times a window that decays at each channel's own rate. It reaches back to the first
    token, so the state is a cache that grows with every token: [B, tokens, 4 D] fp32, the
    projections and x_2 . v.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.d_model
        self.in_proj = nn.Linear(width, 3 * width, bias=config.bias)
        self.out_proj = nn.Linear(width, width, bias=config.bias)
        self.short = nn.Parameter(torch.empty(3 * width, SHORT))
        self.filter_in = nn.Linear(_EMBEDDING, _HIDDEN)
        self.filter_hidden = nn.Linear(_HIDDEN, _HIDDEN)
        self.filter_last = nn.Linear(_HIDDEN, _HIDDEN)
        self.filter_out = nn.Linear(_HIDDEN, width, bias=False)
        self.sine = nn.Parameter(torch.empty(_HIDDEN))
        self.skip = nn.Parameter(torch.empty(width))

    @torch.no_grad()
    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """As torch does layers of their kinds; frequencies of sines 1."""
        layers = (
            self.filter_in,
            self.filter_hidden,
            self.filter_last,
            self.filter_out,
            self.in_proj,
        )
        for layer in layers:
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=generator)
        self.short.uniform_(-(SHORT**-0.5), SHORT**-0.5, generator=generator)
        self.sine.fill_(1)
        self.skip.normal_(0, 1, generator=generator)

    def mix(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `DocumentMixer`."""
        dtype, width, length = accumulation_dtype(x.dtype), x.shape[2], x.shape[1]
        raw = self.in_proj(x).to(dtype)
        if mask is not None:
            raw = raw.masked_fill(~mask[..., None], 0)
        before = raw.new_zeros(x.shape[0], 0, 4 * width) if state is None else state.to(dtype)
        filtered = self._short(torch.cat([before[..., -(SHORT - 1) :, : 3 * width], raw], dim=1))
        first, second, v = filtered[:, -length:].chunk(3, dim=-1)
        gated = second * v
        products = torch.cat([before[..., 3 * width :], gated], dim=1)
        y = first * (self._long(products, length) + self.skip * gated)
        after = torch.cat([before, torch.cat([raw, gated], dim=-1)], dim=1)
        return self.out_proj(y.to(x.dtype)), after

    def _short(self, x: Tensor) -> Tensor:
        """x [B, T, 3 D] filtered over 3 tokens."""
        padded = F.pad(x.transpose(1, 2), (SHORT - 1, 0))
        kernel = self.short.to(x.dtype).flip(1)[:, None]
        return F.conv1d(padded, kernel, groups=x.shape[2]).transpose(1, 2)

    def _long(self, x: Tensor, last: int) -> Tensor:
        """x [B, tokens, D] filtered over all tokens before, the `last` of them: [B, last, D]."""
        kernel = self.filter(x.shape[1], x.dtype)
        if last == 1:
            return torch.einsum("btd,td->bd", x, kernel.flip(0))[:, None]
        return causal_convolution(x.transpose(1, 2), kernel.T)[..., -last:].transpose(1, 2)

    def filter(self, length: int, dtype: torch.dtype) -> Tensor:
        """The long filter of each channel, [length, D]."""
        device = self.skip.device
        place = torch.arange(length, device=device, dtype=dtype)[:, None] / _SPAN
        bands = (_EMBEDDING - 1) // 2
        waves = 2 * pi * place * torch.linspace(1e-4, bands - 1, bands, device=device, dtype=dtype)
        hidden = torch.cat([place, waves.cos(), -waves.sin()], dim=-1)
        for layer in (self.filter_in, self.filter_hidden, self.filter_last):
            hidden = torch.sin(self.sine.to(dtype) * _product(hidden, layer))
        width = self.filter_out.out_features
        # From a hundredth of its size within 0.3 of the span to the same within 1.5 of it.
        rates = torch.linspace(
            -log(0.01) / 0.3, -log(0.01) / 1.5, width, device=device, dtype=dtype
        )
        return _product(hidden, self.filter_out) * torch.exp(-place * rates)


def _product(x: Tensor, layer: nn.Linear) -> Tensor:
    """A layer in the dtype of x: filters are as exact as what they filter."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)
