"""Where the states of running requests are: a fixed number of slots, allotted once."""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.model import RetNetState


class StatePool:
    """Slots for the states of requests; a slot is a row of one state.

    state: of as many rows as there are slots; it belongs to the pool from then on.
    settle_: makes it hold all that some rows have read, see `Decoder.settle_`.
    """

    def __init__(self, state: RetNetState, settle_: Callable[[RetNetState, Tensor], None]) -> None:
        self.state, self._settle_ = state, settle_
        self.num_slots = len(state.position)
        for layer in state.layers:
            layer.zero_()  # which takes the memory now, not when the first requests come
        self._free = list(reversed(range(self.num_slots)))

    @property
    def num_free(self) -> int:
        """How many slots can be taken."""
        return len(self._free)

    @property
    def slot_bytes(self) -> int:
        """Bytes of memory that a slot takes, whatever has been read."""
        return self.state.num_bytes // self.num_slots

    def take(self) -> int:
        """A free slot; there has to be one. What is in it is left from before."""
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Make a slot free again."""
        assert slot not in self._free
        self._free.append(slot)

    @torch.no_grad()
    def clear_(self, slot: int) -> None:
        """Make a slot as if nothing had been read."""
        self._settle_slot_(slot)
        for layer in self.state.layers:
            layer[slot].zero_()
        self.state.position[slot] = 0

    @torch.no_grad()
    def write_(self, slot: int, state: RetNetState) -> None:
        """Put a state of one row into a slot."""
        self._settle_slot_(slot)
        for layer, written in zip(self.state.layers, state.layers, strict=True):
            layer[slot] = written[0]
        self.state.position[slot] = state.position[0]

    def read(self, slot: int) -> RetNetState:
        """A copy of what is in a slot, one row."""
        self._settle_slot_(slot)
        return RetNetState(
            tuple(layer[slot : slot + 1].clone() for layer in self.state.layers),
            self.state.position[slot : slot + 1].clone(),
        )

    def _settle_slot_(self, slot: int) -> None:
        self._settle_(self.state, torch.tensor([slot], device=self.state.position.device))
