import math
from collections.abc import Callable

import pytest
import torch

from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet
from retnet.score import Score, score_documents

# Lengths at, before and after the ends of pieces of 16, and documents without any byte.
LENGTHS = (40, 0, 1, 16, 17, 15, 33, 2, 16, 0, 90)
DOCUMENTS = [bytes((7 * index + length) % 256 for index in range(length)) for length in LENGTHS]


@pytest.fixture
def model() -> RetNet:
    config = ModelConfig(d_model=32, num_layers=2, num_heads=2)
    return RetNet(config, generator=torch.Generator().manual_seed(0))


def plain_nats(model: RetNet, document: bytes) -> float:
    """The definition: every byte from bos and all bytes before it, in one call."""
    tokenizer = ByteTokenizer()
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(document)]])
    with torch.no_grad():
        costs = model(ids)[0].log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
    return -float(costs.double().sum())


@pytest.mark.parametrize(("batch_size", "piece_size"), [(16, 16), (3, 16), (1, 1000), (4, 1)])
def test_pieces_and_batches_change_nothing(model: RetNet, batch_size: int, piece_size: int) -> None:
    score = score_documents(model, DOCUMENTS, batch_size=batch_size, piece_size=piece_size)
    expected = [plain_nats(model, document) if document else 0.0 for document in DOCUMENTS]
    assert score.nats == pytest.approx(expected, rel=1e-5)
    assert score.num_bytes == LENGTHS


def test_an_untrained_model_needs_about_eight_bits(model: RetNet) -> None:
    text = bytes(range(256)) * 8
    assert score_documents(model, [text]).bits_per_byte == pytest.approx(math.log2(259), abs=1.5)


def test_sums() -> None:
    score = Score(nats=(8 * math.log(2), 4 * math.log(2)), num_bytes=(1, 3))
    assert score.document_bits == pytest.approx((8, 4))
    assert score.total_bytes == 4
    assert score.bits_per_byte == pytest.approx(3)


def test_memory_does_not_grow_with_the_document(
    model: RetNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call sees more than a piece, and rows leave the batch when their document has ended."""
    shapes: list[tuple[int, int]] = []
    features: Callable[..., object] = model.features

    def watched(tokens: torch.Tensor, *rest: object) -> object:
        shapes.append((tokens.shape[0], tokens.shape[1]))
        return features(tokens, *rest)

    monkeypatch.setattr(model, "features", watched)
    score_documents(model, [b"x" * 1000, b"y" * 100, b"z" * 10], piece_size=64)
    assert shapes[:3] == [(3, 64), (2, 64), (1, 64)]
    assert sum(rows * columns for rows, columns in shapes) <= 1000 + 128 + 64


def test_progress_counts_every_byte(model: RetNet) -> None:
    scored: list[int] = []
    score_documents(model, DOCUMENTS, piece_size=16, progress=scored.append)
    assert sum(scored) == sum(LENGTHS)
    assert len(scored) > 3


def test_the_mode_of_the_model_is_kept(model: RetNet) -> None:
    """Also where the callback stops the scoring."""
    model.train()
    score_documents(model, [b"abc"])
    assert model.training

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_documents(model, [b"abc"], progress=stop)
    assert model.training


def test_dropout_is_off() -> None:
    config = ModelConfig(d_model=32, num_layers=2, num_heads=2, dropout=0.5)
    model = RetNet(config, generator=torch.Generator().manual_seed(0)).train()
    assert score_documents(model, [b"hello"]) == score_documents(model, [b"hello"])


def test_autocast_is_near(model: RetNet) -> None:
    exact = score_documents(model, DOCUMENTS).bits_per_byte
    rounded = score_documents(model, DOCUMENTS, autocast_dtype=torch.bfloat16).bits_per_byte
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("documents", [[], [b"", b""]])
def test_nothing_to_score_is_refused(model: RetNet, documents: list[bytes]) -> None:
    with pytest.raises(ValueError, match="documents must hold at least one token"):
        score_documents(model, documents)
