"""Bits per byte of whole documents, in constant memory however long they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet, RetNetState

_IGNORED = -100


@dataclass(frozen=True)
class Score:
    """What some documents cost a model.

    nats, num_bytes: of each document, in their order.
    """

    nats: tuple[float, ...]
    num_bytes: tuple[int, ...]

    @property
    def total_nats(self) -> float:
        """Nats over all documents."""
        return sum(self.nats)

    @property
    def total_bytes(self) -> int:
        """Bytes over all documents."""
        return sum(self.num_bytes)

    @property
    def document_bits(self) -> tuple[float, ...]:
        """Bits of each document."""
        return tuple(nats / log(2) for nats in self.nats)

    @property
    def bits_per_byte(self) -> float:
        """Bits over all documents by bytes over all documents: what a compressor's ratio counts."""
        return self.total_nats / log(2) / self.total_bytes


def score_documents(
    model: RetNet,
    documents: Sequence[bytes],
    *,
    batch_size: int = 16,
    piece_size: int = 1024,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """The cost of every byte of every document, read from bos and an empty state to its end.

    Documents are read in pieces of `piece_size` tokens with the state carried over, `batch_size`
    documents at a time, so memory doesn't grow with their length. The model is evaluated, and left
    in the mode it was in.

    autocast_dtype: run the matmuls in this dtype; progress: called after each piece with the bytes
    it scored. Raises ValueError where there is nothing to score.
    """
    if not sum(map(len, documents)):
        raise ValueError(
            f"documents must hold at least one byte, got {len(documents)} documents without any"
        )
    order = sorted(range(len(documents)), key=lambda row: -len(documents[row]))
    nats = [0.0] * len(documents)
    with _evaluating(model), torch.inference_mode(), autocast(_device(model), autocast_dtype):
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            costs = _batch_nats(model, [documents[row] for row in rows], piece_size, progress)
            for row, cost in zip(rows, costs, strict=True):
                nats[row] = cost
    return Score(tuple(nats), tuple(map(len, documents)))


def _batch_nats(
    model: RetNet,
    documents: Sequence[bytes],
    piece_size: int,
    progress: Callable[[int], None] | None,
) -> list[float]:
    """Nats of each of some documents, longest first; one that has ended leaves the batch."""
    nats = torch.zeros(len(documents), dtype=torch.float64)
    state: RetNetState | None = None
    for start in range(0, len(documents[0]), piece_size):
        reading = [document for document in documents if len(document) > start]
        if state is not None and state.position.shape[0] > len(reading):
            state = state.rows(range(len(reading)))
        tokens, targets = _piece(reading, start, piece_size, _device(model))
        logits, state = model(tokens, state)
        nats[: len(reading)] += _row_nats(logits, targets).cpu()
        if progress is not None:
            progress(int((targets != _IGNORED).sum()))
    return nats.tolist()


def _piece(
    documents: Sequence[bytes], start: int, piece_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(tokens, targets) [B, T] from byte `start` of each on; past an end nothing is scored."""
    tokenizer = ByteTokenizer()
    pieces = [document[start : start + piece_size] for document in documents]
    shape = (len(pieces), max(map(len, pieces)))
    tokens = torch.full(shape, tokenizer.pad_id)
    targets = torch.full(shape, _IGNORED)
    for row, (document, piece) in enumerate(zip(documents, pieces, strict=True)):
        ids = torch.from_numpy(tokenizer.encode_array(piece).astype("int64"))
        targets[row, : len(piece)] = ids
        tokens[row, 1 : len(piece)] = ids[:-1]
        tokens[row, 0] = document[start - 1] + tokenizer.num_special if start else tokenizer.bos_id
    return tokens.to(device), targets.to(device)


def _row_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats [B] of each row's scored targets [B, T]; logits [B, T, vocab]."""
    costs = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED, reduction="none"
    )
    return costs.view(targets.shape).sum(1, dtype=torch.float64)


@contextmanager
def _evaluating(model: RetNet) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Matmuls in `dtype` inside; None for no change."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _device(model: RetNet) -> torch.device:
    return next(model.parameters()).device
