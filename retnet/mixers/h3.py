"""H3: two state space models in place of attention."""

from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import ModelConfig
from retnet.mixers.base import DocumentMixer, with_last
from retnet.ops.reference import accumulation_dtype

HEAD_SIZE = 8  # the paper's
STATE_SIZE = 64
CHUNK = 128  # tokens that are mixed at once, at a cost that grows as their square


class H3(DocumentMixer):
    """q . ssm_diagonal(ssm_shift(k) v^T) in heads of 8, between four projections.

    (Fu et al. 2022, arXiv 2212.14052, Algorithm 1.) The shift model is a learned filter over the
    last 64 tokens of each channel. The diagonal one is S4D's (arXiv 2206.11893): 32 complex numbers
    for each number of k v^T, with decays and frequencies that the numbers of a head share. Both
    have a path past their state. In training the shift model is a convolution, the diagonal one
    attention weighted by its filter within chunks and a recurrence between them.

    The state is [B, 63 D + H 64 64] fp32: the last 63 keys, and the diagonal model's numbers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.d_model
        if width % HEAD_SIZE:
            raise ValueError(f"d_model must be a multiple of {HEAD_SIZE} for h3, got {width}")
        self._heads, pairs = width // HEAD_SIZE, STATE_SIZE // 2
        self.q_proj = nn.Linear(width, width, bias=config.bias)
        self.k_proj = nn.Linear(width, width, bias=config.bias)
        self.v_proj = nn.Linear(width, width, bias=config.bias)
        self.out_proj = nn.Linear(width, width, bias=config.bias)
        self.shift = nn.Parameter(torch.empty(width, STATE_SIZE))
        self.shift_skip = nn.Parameter(torch.empty(width))
        self.log_step = nn.Parameter(torch.empty(self._heads))
        self.log_decay = nn.Parameter(torch.empty(self._heads, pairs))
        self.frequency = nn.Parameter(torch.empty(self._heads, pairs))
        self.read_out = nn.Parameter(torch.empty(self._heads, pairs, 2))
        self.skip = nn.Parameter(torch.empty(self._heads))

    @torch.no_grad()
    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """S4D-Lin: A = -1/2 + i pi n, steps from 0.001 to 0.1."""
        low, high = log(0.001), log(0.1)
        self.log_step.uniform_(0, 1, generator=generator).mul_(high - low).add_(low)
        self.log_decay.fill_(log(0.5))
        self.frequency.copy_(pi * torch.arange(self.frequency.shape[1]).expand_as(self.frequency))
        self.read_out.normal_(0, 0.5**0.5, generator=generator)
        self.shift.normal_(0, STATE_SIZE**-0.5, generator=generator)
        for skip in (self.skip, self.shift_skip):
            skip.normal_(0, 1, generator=generator)

    def mix(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `DocumentMixer`."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        dtype = accumulation_dtype(x.dtype)
        q, k, v = (project(x).to(dtype) for project in (self.q_proj, self.k_proj, self.v_proj))
        keys, numbers = self._split(state)
        k, keys = self._shifted(k, keys)
        if mask is not None:
            k = k.masked_fill(~mask[..., None], 0)
        heads = (y.unflatten(-1, (self._heads, HEAD_SIZE)).transpose(1, 2) for y in (q, k, v))
        mixed = []
        for q, k, v in zip(*(y.split(CHUNK, dim=2) for y in heads), strict=True):
            y, numbers = self._diagonal(q, k, v, numbers)
            mixed.append(y)
        assert numbers is not None
        after = torch.cat([keys.flatten(1), numbers.flatten(1)], dim=1)
        return self.out_proj(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2).to(x.dtype)), after

    def _split(self, state: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The last keys [B, 63, D], and the diagonal model's numbers [B, H, 64, 64]."""
        if state is None:
            return None, None
        count = (STATE_SIZE - 1) * self._heads * HEAD_SIZE
        keys = state[:, :count].unflatten(1, (STATE_SIZE - 1, -1))
        return keys, state[:, count:].unflatten(1, (self._heads, HEAD_SIZE**2, STATE_SIZE))

    def _shifted(self, k: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """k [B, T, D] filtered, and the last 63 of them as they came."""
        longer = with_last(k, before, STATE_SIZE - 1)
        filtered = F.conv1d(
            longer.transpose(1, 2), self.shift.to(k.dtype).flip(1)[:, None], groups=k.shape[2]
        )
        return filtered.transpose(1, 2) + self.shift_skip * k, longer[:, -(STATE_SIZE - 1) :]

    def _powers(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """exp(A step l) for l = 0..length [H, 32, length + 1], and B of the held input [H, 32]."""
        rate = torch.complex(-self.log_decay.to(dtype).exp(), self.frequency.to(dtype))
        exponent = rate * self.log_step.to(dtype).exp()[:, None]
        times = torch.arange(length + 1, device=rate.device, dtype=dtype)
        return torch.exp(exponent[..., None] * times), (torch.exp(exponent) - 1) / rate

    def _diagonal(
        self, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """q . ssm_diagonal(k v^T) [B, H, T, 8], and the model's numbers after [B, H, 64, 64].

        Those are 32 complex ones for each of the 8 x 8, real parts before imaginary ones, so that
        all that is done with them is products of real matrices. All of a head's 8 x 8 numbers go
        through one filter, so what they give a query is a sum over (q_t . k_s) v_s of before.
        """
        powers, hold = self._powers(q.shape[2], q.dtype)
        read = 2 * torch.view_as_complex(self.read_out.to(q.dtype).contiguous())
        kernel = torch.einsum("hn,hnt->ht", read * hold, powers[..., :-1]).real
        kernel = torch.cat([kernel[:, :1] + self.skip[:, None], kernel[:, 1:]], dim=1)
        y = (q @ k.transpose(2, 3) * _filter_matrix(kernel)) @ v
        written = powers[..., :-1].flip(-1) * hold[..., None]
        outer = (k[..., :, None] * v[..., None, :]).flatten(3).transpose(2, 3)
        after = outer @ torch.cat([written.real, written.imag], dim=1).transpose(1, 2)
        if before is not None:
            before = before.to(q.dtype)
            seen = read[..., None] * powers[..., 1:]
            found = before @ torch.cat([seen.real, -seen.imag], dim=1)
            y = y + torch.einsum("bhti,bhijt->bhtj", q, found.unflatten(2, (HEAD_SIZE, HEAD_SIZE)))
            turn = powers[..., -1]
            real, imaginary = before.chunk(2, dim=-1)
            kept = torch.complex(real, imaginary) * turn[:, None]
            after = after + torch.cat([kept.real, kept.imag], dim=-1)
        return y, after


def _filter_matrix(kernel: Tensor) -> Tensor:
    """Filters [H, T] as matrices [H, T, T]: at (t, s) kernel_(t - s), 0 for s > t."""
    length = kernel.shape[1]
    return F.pad(kernel, (length - 1, 0)).unfold(1, length, 1).flip(2)
