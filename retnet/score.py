"""Bits per byte of whole documents, in constant memory however long they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from retnet.data.tokenizer import ByteTokenizer
from retnet.data.tokens import TokenDocument, byte_documents
from retnet.loss import IGNORED, linear_token_costs
from retnet.model import RetNet, RetNetState

# (tokens [B, T], targets [B, T], the state before) -> what each target costs, [B, T] in nats, 0 for
# the IGNORED ones; and the state after.
TokenCosts = Callable[[Tensor, Tensor, RetNetState | None], tuple[Tensor, RetNetState]]


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

    The model is evaluated, and left in the mode it was in; for the rest see `score_tokens`.

    autocast_dtype: run the matmuls in this dtype.
    """
    device = next(model.parameters()).device
    with evaluating(model), autocast(device, autocast_dtype):
        return score_tokens(
            token_costs(model),
            byte_documents(documents),
            bos_id=ByteTokenizer.bos_id,
            device=device,
            batch_size=batch_size,
            piece_size=piece_size,
            progress=progress,
        )


def token_costs(model: RetNet) -> TokenCosts:
    """What a model finds that tokens cost."""

    def costs(
        tokens: Tensor, targets: Tensor, state: RetNetState | None
    ) -> tuple[Tensor, RetNetState]:
        features, state = model.features(tokens, state)
        return linear_token_costs(features, model.head_weight, targets), state

    return costs


@torch.inference_mode()
def score_tokens(
    costs: TokenCosts,
    documents: Sequence[TokenDocument],
    *,
    bos_id: int,
    device: torch.device,
    batch_size: int = 16,
    piece_size: int = 1024,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """The cost of every token of every document, read from bos and an empty state to its end.

    Documents are read in pieces of `piece_size` tokens with the state carried over, `batch_size`
    documents at a time, so memory doesn't grow with their length.

    progress: called after each piece with the tokens it scored. Raises ValueError where there is
    nothing to score.
    """
    if not sum(len(document.ids) for document in documents):
        raise ValueError(
            f"documents must hold at least one token, got {len(documents)} documents without any"
        )
    order = sorted(range(len(documents)), key=lambda row: -len(documents[row].ids))
    nats = [0.0] * len(documents)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        reader = _Reader([documents[row] for row in rows], bos_id, piece_size, device)
        for row, cost in zip(rows, reader.nats(costs, progress), strict=True):
            nats[row] = cost
    return Score(tuple(nats), tuple(document.num_bytes for document in documents))


@dataclass(frozen=True)
class _Reader:
    """Reads some documents, longest first, side by side."""

    documents: Sequence[TokenDocument]
    bos_id: int
    piece_size: int
    device: torch.device

    def nats(self, costs: TokenCosts, progress: Callable[[int], None] | None) -> list[float]:
        """Nats of each document; one that has ended leaves the batch."""
        nats = torch.zeros(len(self.documents), dtype=torch.float64)
        state: RetNetState | None = None
        for start in range(0, len(self.documents[0].ids), self.piece_size):
            reading = [document for document in self.documents if len(document.ids) > start]
            if state is not None and state.position.shape[0] > len(reading):
                state = state.rows(range(len(reading)))
            tokens, targets = self._piece(reading, start)
            row_costs, state = costs(tokens, targets, state)
            nats[: len(reading)] += row_costs.sum(1, dtype=torch.float64).cpu()
            if progress is not None:
                progress(int((targets != IGNORED).sum()))
        return nats.tolist()

    def _piece(self, documents: Sequence[TokenDocument], start: int) -> tuple[Tensor, Tensor]:
        """(tokens, targets) [B, T] from token `start` of each on; past an end nothing is scored."""
        pieces = [document.ids[start : start + self.piece_size] for document in documents]
        shape = (len(pieces), max(map(len, pieces)))
        tokens, targets = torch.full(shape, self.bos_id), torch.full(shape, IGNORED)
        for row, (document, piece) in enumerate(zip(documents, pieces, strict=True)):
            ids = torch.from_numpy(piece.astype("int64"))
            targets[row, : len(piece)] = ids
            tokens[row, 1 : len(piece)] = ids[:-1]
            if start:
                tokens[row, 0] = int(document.ids[start - 1])
        return tokens.to(self.device), targets.to(self.device)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
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
