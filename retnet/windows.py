"""Bits per byte of text that is read in windows, each from nothing: the same terms for any model.

`retnet.score` reads a document from its beginning to its end, with a state that goes on. That suits
a state of constant size. A cache that grows with every token can't be read so far, and a model that
was trained on short windows need not make sense of long ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import log
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retnet.data.tokens import TokenDocument
from retnet.loss import IGNORED
from retnet.score import TokenCosts


class Window(NamedTuple):
    """Some tokens that are read together.

    document: which one they are of.
    ids: [T + 1] the tokens read, and behind them the last one that is predicted.
    first_scored: the first of the T predictions that counts.
    """

    document: int
    ids: NDArray[np.int64]
    first_scored: int


def sliding_windows(
    documents: Sequence[TokenDocument], *, bos_id: int, window: int, stride: int
) -> Iterator[Window]:
    """Every token of every document once, with at least `window` - `stride` tokens before it.

    Windows begin `stride` tokens apart; each counts its last `stride` predictions, the first of a
    document all. Bos stands before a document's first token.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be from 1 to the window of {window}, got {stride}")
    for number, document in enumerate(documents):
        ids = np.concatenate([[bos_id], np.asarray(document.ids, dtype=np.int64)])
        scored = 0
        for start in range(0, len(ids) - 1, stride):
            if scored < len(ids) - 1:
                part = ids[start : start + window + 1]
                yield Window(number, part, scored - start)
                scored = start + len(part) - 1


def last_tokens(
    documents: Sequence[TokenDocument], *, chunk: int, context: int, scored: int
) -> Iterator[Window]:
    """The last `scored` tokens of every chunk, each as a model with a context sees them: it reads
    the chunk's last `context` tokens (the paper's table 8).

    What is left of a document behind its last whole chunk does not count.
    """
    if not 1 <= scored <= context <= chunk:
        raise ValueError(
            f"of a chunk, at least its context, of which at least what is scored: got {chunk}, "
            f"{context} and {scored}"
        )
    for number, document in enumerate(documents):
        ids = np.asarray(document.ids, dtype=np.int64)
        for end in range(chunk + 1, len(ids) + 1, chunk):
            yield Window(number, ids[end - context - 1 : end], context - scored)


class WindowScore(NamedTuple):
    """What windows cost.

    nats: of the scored tokens of each document that had any, by its number.
    num_tokens: how many were scored.
    """

    nats: dict[int, float]
    num_tokens: int

    @property
    def total_nats(self) -> float:
        """Nats over all documents."""
        return sum(self.nats.values())

    @property
    def bits_per_token(self) -> float:
        """Bits over all scored tokens by their number: with the byte tokenizer, bits per byte."""
        return self.total_nats / log(2) / self.num_tokens


@torch.inference_mode()
def score_windows(
    costs: TokenCosts,
    windows: Iterable[Window],
    *,
    device: torch.device,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> WindowScore:
    """What the scored tokens of windows cost, `batch_size` windows read at a time.

    progress: called after each batch with the tokens it scored. Raises ValueError where there is no
    window.
    """
    nats: dict[int, float] = {}
    num_tokens, rest = 0, iter(windows)
    while batch := list(islice(rest, batch_size)):
        tokens, targets = _rows(batch)
        found, _ = costs(tokens.to(device), targets.to(device), None)
        for row, cost in zip(batch, found.sum(1, dtype=torch.float64).tolist(), strict=True):
            nats[row.document] = nats.get(row.document, 0.0) + cost
        scored = int((targets != IGNORED).sum())
        num_tokens += scored
        if progress is not None:
            progress(scored)
    if not num_tokens:
        raise ValueError("there is nothing to score: no document is long enough for a window")
    return WindowScore(nats, num_tokens)


def _rows(windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """(tokens, targets) [B, T]; a window that is shorter than another is filled up behind its end,
    which changes nothing before it.
    """
    shape = (len(windows), max(len(window.ids) for window in windows) - 1)
    tokens, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    for row, (_, ids, first) in enumerate(windows):
        read = torch.from_numpy(ids)
        tokens[row, : len(read) - 1] = read[:-1]
        targets[row, first : len(read) - 1] = read[1 + first :]
    return tokens, targets
