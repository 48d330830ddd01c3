"""What the rivals of retention have in common."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from retnet.ops.reference import segment_runs
from retnet.position import TokenContext


class Mixer(nn.Module, ABC):
    """A token mixer: what a position takes from those before it, in place of retention.

    Its state is one tensor whose first axis is the batch, all zeros for a row that has read
    nothing; how large it is, and whether it grows, is the mixer's own affair.
    """

    @abstractmethod
    def forward(
        self, x: Tensor, context: TokenContext, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, D] and the state before, None for nothing -> y [B, T, D] and the state after."""

    @torch.no_grad()
    def initialise_(self, generator: torch.Generator | None = None) -> None:
        """Draw the parameters that have initial values of their own; the others have got theirs by
        their names, see `initialise_parameter_`.
        """


class DocumentMixer(Mixer):
    """A mixer that knows nothing of documents: each of those in a row is read with all others as
    padding.
    """

    @abstractmethod
    def mix(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """`forward` for rows of one document each, with mask [B, T] bool, False for padding."""

    def forward(
        self, x: Tensor, context: TokenContext, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer`. The state before is of a row's first document, that after of its last."""
        if context.segment_ids is None:
            return self.mix(x, context.mask, state)
        runs = segment_runs(context.segment_ids, x)
        y, after = torch.zeros_like(x), x.new_zeros(0)
        for run in range(int(runs.max()) + 1):
            inside = runs == run
            mask = inside if context.mask is None else inside & context.mask
            mixed, found = self.mix(x, mask, state if run == 0 else None)
            y = torch.where(inside[..., None], mixed, y)
            is_last = (runs[:, -1] == run).view(-1, *[1] * (found.dim() - 1))
            after = found if run == 0 else torch.where(is_last, _as_long(found, after), after)
        return y, after


def _as_long(state: Tensor, other: Tensor) -> Tensor:
    """A cache [B, tokens, ...] behind zeros, as many tokens as the other."""
    missing = other.shape[1] - state.shape[1]
    if not missing:
        return state
    return torch.cat([torch.zeros_like(other[:, :missing]), state], dim=1)


def with_last(x: Tensor, state: Tensor | None, count: int) -> Tensor:
    """x [B, T, D] behind the `count` tokens before it: [B, count + T, D].

    state: [B, count, D], or None for zeros.
    """
    before = x.new_zeros(x.shape[0], count, x.shape[2]) if state is None else state.to(x.dtype)
    return torch.cat([before, x], dim=1)
