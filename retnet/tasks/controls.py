"""Two tasks whose outcome is known beforehand: what no honest measurement may find otherwise."""

from dataclasses import dataclass

import torch

from retnet.loss import IGNORED
from retnet.tasks.draws import generator
from retnet.tasks.recall import Examples


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Random bits, and at each of them whether those so far had an odd number of ones.

    Ids 0 and 1 are the bits, and the answers. No model whose states are sums that forget can count
    them over any length (Merrill et al. 2024, arXiv:2404.08819): beyond the length it was trained
    on, it has to guess.

    Attributes:
        length: T.
        first_asked: the first position at which something is asked.
    """

    length: int = 16
    first_asked: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.first_asked < self.length:
            raise ValueError(
                f"first_asked must be in [0, length = {self.length}), got {self.first_asked}"
            )

    @property
    def vocab_size(self) -> int:
        """See `Task`."""
        return 2

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        """The examples of a step; see `Task`."""
        bits = generator(seed, step).integers(2, size=(batch_size, self.length))
        answers = bits.cumsum(axis=1) % 2
        answers[:, : self.first_asked] = IGNORED
        return Examples(torch.from_numpy(bits), torch.from_numpy(answers))


@dataclass(frozen=True, kw_only=True)
class RandomBytes:
    """Bytes that have nothing to do with each other: the next one is asked for, at 8 bits.

    Attributes:
        length: T.
    """

    length: int = 64

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be >= 1, got {self.length}")

    @property
    def vocab_size(self) -> int:
        """See `Task`."""
        return 256

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        """The examples of a step; see `Task`."""
        rng = generator(seed, step)
        drawn = torch.from_numpy(rng.integers(256, size=(batch_size, self.length + 1)))
        return Examples(drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous())
