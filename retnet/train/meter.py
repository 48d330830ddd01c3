"""Losses and gradient norms between two reports, kept on the device until they are asked for."""

import time
from collections.abc import Callable, Sequence
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """Means over some steps.

    nonfinite_step: the first step, from 0, whose loss or gradient was not finite, or None.
    """

    loss_nats: float
    gradient_norm: float
    step_s: float
    nonfinite_step: int | None


class Meter:
    """Collects without waiting for the device; reading each value would stall a GPU.

    first_step: steps done before; pending: what another had collected and not been asked for.
    """

    def __init__(self, *, first_step: int = 0, pending: Sequence[Sequence[float]] = ()) -> None:
        self._values: list[Tensor] = [torch.tensor(pair) for pair in pending]
        self._next_step = first_step - len(pending)
        self._started_s = time.monotonic()
        self._before_s = 0.0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """One step's loss and gradient norm, both scalars."""
        self._values.append(torch.stack((loss.detach(), gradient_norm)))

    @property
    def trained_s(self) -> float:
        """Seconds since the first clock, without what `restart_clock` left out."""
        return self._before_s + time.monotonic() - self._started_s

    def restart_clock(self) -> None:
        """Leave out of the time what was done since the last interval."""
        self._started_s = time.monotonic()

    def pending(self, mean: Callable[[Tensor], Tensor]) -> list[list[float]]:
        """Pairs of loss and gradient norm that `take` would be about, for another meter.

        mean: of a tensor, over the processes that have seen different tokens.
        """
        if not self._values:
            return []
        values = mean(torch.stack([pair.cpu() for pair in self._values]))
        self._values = list(values)
        return values.tolist()

    def take(self, mean: Callable[[Tensor], Tensor]) -> Interval:
        """What was collected since the last call; there must be something. mean: as before."""
        values = self.pending(mean)
        first_step, self._next_step = self._next_step, self._next_step + len(values)
        bad = (step for step, pair in enumerate(values, first_step) if not all(map(isfinite, pair)))
        now_s = time.monotonic()
        seconds = now_s - self._started_s
        self._before_s += seconds
        self._started_s = now_s
        self._values.clear()
        losses, norms = zip(*values, strict=True)
        count = len(values)
        return Interval(sum(losses) / count, sum(norms) / count, seconds / count, next(bad, None))
