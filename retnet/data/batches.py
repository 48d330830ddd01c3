"""Batches as pure functions of (seed, step): a run continues exactly from nothing but its step.

The text is a circle: what follows its last token is its first, which begins a document as any other
beginning does.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retnet.data.shuffle import shuffled
from retnet.data.tokens import TokenStream


class Batch(NamedTuple):
    """Some rows of one step.

    tokens, targets: [B, T] int64; targets are the tokens that follow.
    segment_ids: [B, T] int64, telling documents apart; None where no row holds parts of two.
    starts: [B] int64 on the CPU, the place of each row's first token in the text.
    """

    tokens: Tensor
    targets: Tensor
    segment_ids: Tensor | None
    starts: Tensor

    def rows(self, rows: slice) -> "Batch":
        """Some of its rows."""
        segments = None if self.segment_ids is None else self.segment_ids[rows]
        return Batch(self.tokens[rows], self.targets[rows], segments, self.starts[rows])

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        segments = None if self.segment_ids is None else self.segment_ids.to(device)
        return Batch(self.tokens.to(device), self.targets.to(device), segments, self.starts)


@dataclass(frozen=True, kw_only=True)
class _Batches:
    """What both ways of reading share.

    stream: the text; context: T; batch_size: rows of a step; bos_id: what begins every document;
    eos_id: what is to be predicted after a document's last token. A row may span several documents:
    `segment_ids` keep them from seeing each other.
    """

    stream: TokenStream
    context: int
    batch_size: int
    seed: int
    bos_id: int
    eos_id: int

    def __post_init__(self) -> None:
        needed = self.context * self.batch_size
        if len(self.stream) <= needed:
            raise ValueError(
                f"too little text to train on: {len(self.stream):,} tokens, and a step reads "
                f"{self.batch_size} x {self.context} and one more; pass more text, or a smaller "
                "batch_size or context"
            )

    @property
    def num_steps_per_epoch(self) -> int:
        """Steps that read about as many tokens as there are."""
        return max(1, len(self.stream) // (self.context * self.batch_size))

    def rows_at(self, starts: NDArray[np.int64]) -> Batch:
        """The rows that begin at some places [B] of the text."""
        rows = [self._read(int(start)) for start in starts]
        windows = torch.from_numpy(np.stack(rows).astype(np.int64))
        tokens, following = windows[:, :-1], windows[:, 1:]
        is_start = tokens == self.bos_id
        targets = torch.where(following == self.bos_id, self.eos_id, following)
        has_two = bool(is_start[:, 1:].any())
        segments = is_start.cumsum(1) if has_two else None
        return Batch(tokens.contiguous(), targets, segments, torch.from_numpy(starts))

    def _read(self, start: int) -> NDArray[Any]:
        """The context + 1 tokens from a place on, past the end on from the beginning."""
        end = start + self.context + 1
        row = self.stream.read(start, min(end, len(self.stream)))
        rest = end - len(self.stream)
        return row if rest <= 0 else np.concatenate([row, self.stream.read(0, rest)])


@dataclass(frozen=True, kw_only=True)
class Windows(_Batches):
    """The text in windows, all of them in a new order, and cut elsewhere, each time through."""

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """These rows of a step, the same for the same (seed, step) whatever was drawn before."""
        first = step * self.batch_size
        numbers = range(first, first + self.batch_size)[rows]
        return self.rows_at(np.array([self._start(number) for number in numbers], dtype=np.int64))

    def _start(self, number: int) -> int:
        """Where the window of this number begins, counted from the run's first."""
        size = len(self.stream)
        epoch, index = divmod(number, size // self.context)
        shift = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]
        place = shuffled(index, size // self.context, seed=(self.seed, epoch))
        return int((int(shift) + place * self.context) % size)


@dataclass(frozen=True, kw_only=True)
class Streams(_Batches):
    """Every row is one long text: its window of a step follows its window of the step before.

    The rows begin at places spread evenly over the text, and go on from its end at its beginning.
    """

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """These rows of a step."""
        size = len(self.stream)
        numbers = range(self.batch_size)[rows]
        starts = [(row * size // self.batch_size + step * self.context) % size for row in numbers]
        return self.rows_at(np.array(starts, dtype=np.int64))
