"""What the rivals of retention have in common."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

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


def refuse(what: str, why: str, given: Tensor | None) -> None:
    """ValueError where something was given that a mixer cannot take."""
    if given is not None:
        raise ValueError(f"{what} cannot be given to this model: {why}")


def with_last(x: Tensor, state: Tensor | None, count: int) -> Tensor:
    """x [B, T, D] behind the `count` tokens before it: [B, count + T, D].

    state: [B, count, D], or None for zeros.
    """
    before = x.new_zeros(x.shape[0], count, x.shape[2]) if state is None else state.to(x.dtype)
    return torch.cat([before, x], dim=1)
