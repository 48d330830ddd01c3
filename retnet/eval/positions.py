"""What tokens cost by their position in the document: how much a model makes of what it has read.

A model that remembers more pays less far into a document.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from retnet.loss import IGNORED
from retnet.model import RetNetState
from retnet.score import TokenCosts

# Buckets end before these positions: 64, 128, 256 and so on.
_ENDS = tuple(64 * 2**k for k in range(50))


@dataclass(frozen=True)
class PositionLoss:
    """The tokens at positions from `first` to `last` of their documents, the first token's being 0.

    Attributes:
        first, last: both are in it.
        num_tokens: how many there were.
        bits_per_token: what they cost on average; with the byte tokenizer, bits per byte.
    """

    first: int
    last: int
    num_tokens: int
    bits_per_token: float


class PositionMeter:
    """Adds up what tokens cost by position, in memory that does not grow with the texts."""

    def __init__(self) -> None:
        self._ends = torch.tensor(_ENDS)
        self._nats = torch.zeros(len(_ENDS) + 1, dtype=torch.float64)
        self._counts = torch.zeros(len(_ENDS) + 1, dtype=torch.int64)

    def watching(self, costs: TokenCosts) -> TokenCosts:
        """The same costs, which this meter sees. All rows must have read equally much."""

        def watched(
            tokens: Tensor, targets: Tensor, state: RetNetState | None
        ) -> tuple[Tensor, RetNetState]:
            start = 0 if state is None else int(state.position[0])
            found, after = costs(tokens, targets, state)
            self._add_(start, found, targets)
            return found, after

        return watched

    def _add_(self, start: int, costs: Tensor, targets: Tensor) -> None:
        """Add costs [B, T] in nats of the targets [B, T] at positions from `start` on."""
        positions = torch.arange(start, start + costs.shape[1])
        buckets = torch.bucketize(positions, self._ends, right=True)
        self._nats.index_add_(0, buckets, costs.sum(0, dtype=torch.float64).cpu())
        self._counts.index_add_(0, buckets, (targets != IGNORED).sum(0).cpu())

    def losses(self) -> tuple[PositionLoss, ...]:
        """Every bucket that a token was in, in their order."""
        starts = (0, *_ENDS)
        return tuple(
            PositionLoss(first, end - 1, count, nats / log(2) / count)
            for first, end, count, nats in zip(
                starts, _ENDS, self._counts.tolist(), self._nats.tolist(), strict=False
            )
            if count
        )
