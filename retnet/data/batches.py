"""Batches as a pure function of (seed, step): a run continues exactly from nothing but its step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retnet.data.text import Document
from retnet.data.tokenizer import ByteTokenizer


class Batch(NamedTuple):
    """One step's text.

    tokens, targets: [B, T] int64; targets are the tokens that follow.
    segment_ids: [B, T] int64, telling documents apart; None where no row holds parts of two.
    """

    tokens: Tensor
    targets: Tensor
    segment_ids: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Random windows of one flat stream of tokens, in which every document begins with bos.

    stream: [N] token ids; context: T; batch_size: B. A window may span several documents:
    `segment_ids` keep them from seeing each other, and what follows a document's last byte is eos,
    not the next one's bos.
    """

    stream: NDArray[np.uint16]
    context: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.stream) <= self.context:
            raise ValueError(
                f"too little text to train on: {len(self.stream)} tokens, and a window of context "
                f"{self.context} needs {self.context + 1}; pass more text or a smaller context"
            )

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same (seed, step), whatever was drawn before."""
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step])))
        starts = generator.integers(len(self.stream) - self.context, size=(self.batch_size, 1))
        windows = torch.from_numpy(
            self.stream[starts + np.arange(self.context + 1)].astype(np.int64)
        )
        tokens, following = windows[:, :-1], windows[:, 1:]
        is_start = tokens == ByteTokenizer.bos_id
        targets = torch.where(following == ByteTokenizer.bos_id, ByteTokenizer.eos_id, following)
        has_two = bool(is_start[:, 1:].any())
        return Batch(tokens.contiguous(), targets, is_start.cumsum(1) if has_two else None)


def token_stream(documents: Sequence[Document]) -> NDArray[np.uint16]:
    """All documents as one array [N] of ids, bos before each."""
    tokenizer = ByteTokenizer()
    bos = np.array([tokenizer.bos_id], dtype=np.uint16)
    pieces = [
        part for document in documents for part in (bos, tokenizer.encode_array(document.data))
    ]
    return np.concatenate(pieces)
