"""RWKV-4's time mixing."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retnet.config import ModelConfig
from retnet.mixers.base import DocumentMixer, with_last
from retnet.ops.reference import accumulation_dtype

# The logarithm of a weight that is none beside any other.
_NOTHING = -1e6


class RwkvTimeMixing(DocumentMixer):
    """W_o (sigmoid(r) . wkv): each channel's average of v_m, weighted by e^(k_m) and its own decay.

    (Peng et al. 2023, arXiv 2305.13048, Eq. 11 to 19.) With w = -e^time_decay and u = time_first,
    token m counts at token n by e^(k_m + (n - 1 - m) w), and token n itself by e^(k_n + u). r, k
    and v come from mixtures of a token and the one before.

    The state is [B, 4, D] fp32: the last x; the average so far; the logarithm of its weight, as the
    next token sees it; and 1 where anything was read.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self._place = layer / max(config.num_layers - 1, 1), layer / config.num_layers
        width = config.d_model
        self.time_decay = nn.Parameter(torch.empty(width))
        self.time_first = nn.Parameter(torch.empty(width))
        self.time_mix_k = nn.Parameter(torch.empty(width))
        self.time_mix_v = nn.Parameter(torch.empty(width))
        self.time_mix_r = nn.Parameter(torch.empty(width))
        self.r_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """As the authors do: decays from slow to fast over the channels, by the layer's depth."""
        width, (depth, share) = len(self.time_decay), self._place
        channel = torch.arange(width, dtype=torch.float64) / max(width - 1, 1)
        self.time_decay.copy_(-5 + 8 * channel ** (0.7 + 1.3 * depth))
        zigzag = torch.arange(1, width + 1) % 3 - 1
        self.time_first.copy_(torch.log(torch.tensor(0.3)) + 0.5 * zigzag)
        place = torch.arange(width, dtype=torch.float64) / width
        self.time_mix_k.copy_(place ** (1 - share))
        self.time_mix_v.copy_(place ** (1 - share) + 0.3 * depth)
        self.time_mix_r.copy_(place ** (0.5 * (1 - share)))

    def mix(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `DocumentMixer`."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        before = with_last(x, None if state is None else state[:, :1], 1)[:, :-1]
        r, k, v = (
            project(x * mix + before * (1 - mix))
            for project, mix in (
                (self.r_proj, self.time_mix_r),
                (self.k_proj, self.time_mix_k),
                (self.v_proj, self.time_mix_v),
            )
        )
        past = None if state is None else _Past(state[:, 1], _log_weight(state))
        wkv, past = averages(k, v, -self.time_decay.exp(), self.time_first, past, mask)
        seen = past.log_weight > _NOTHING / 2
        log_weight = past.log_weight.masked_fill(~seen, 0)
        dtype = accumulation_dtype(x.dtype)
        parts = (x[:, -1], past.average.masked_fill(~seen, 0), log_weight, seen)
        after = torch.stack([part.to(dtype) for part in parts], dim=1)
        return self.out_proj(torch.sigmoid(r) * wkv.to(x.dtype)), after


@dataclass(frozen=True)
class _Past:
    """What the tokens before are worth together: average [B, D], and the logarithm of its weight as
    the next token sees it [B, D], `_NOTHING` for no tokens."""

    average: Tensor
    log_weight: Tensor


def _log_weight(state: Tensor) -> Tensor:
    return state[:, 2].masked_fill(state[:, 3] == 0, _NOTHING)


def averages(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    past: _Past | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, _Past]:
    """Each channel's weighted averages [B, T, D] fp64, and what the tokens are worth afterwards.

    k, v: [B, T, D]; decay, first: [D], w <= 0 and u.

    Sums run over logarithms of weights, which cannot overflow, and over logarithms of values that
    are made positive first: a constant may be added to what is averaged, and taken away again. A
    weight e^(k_m - (m + 1) w) grows with its token, to be taken back by e^(n w) at token n.
    """
    k, v, decay, first = (x.double() for x in (k, v, decay, first))
    if past is None:
        nothing = torch.full_like(k[:, 0], _NOTHING)
        past = _Past(torch.zeros_like(nothing), nothing)
    seen = k if mask is None else k.masked_fill(~mask[..., None], _NOTHING)
    place = torch.arange(k.shape[1] + 1, device=k.device)[:, None]
    weights = torch.cat([past.log_weight.double()[:, None], seen], dim=1) - place * decay
    values = torch.cat([past.average.double()[:, None], v], dim=1)
    shift = 1 - values.detach().amin(dim=1, keepdim=True)
    total = weights.logcumsumexp(dim=1)
    mean = ((weights + (values + shift).log()).logcumsumexp(dim=1) - total).exp() - shift
    before = total + place * decay  # as the next token sees it
    own = torch.sigmoid(k + first - before[:, :-1])
    return torch.lerp(mean[:, :-1], v, own), _Past(mean[:, -1], before[:, -1])
