"""What tokens cost by their position."""

import math

import numpy as np
import pytest
import torch

from retnet.data.tokens import TokenDocument
from retnet.eval.positions import PositionLoss, PositionMeter
from retnet.loss import IGNORED
from retnet.model import RetNet, RetNetState
from retnet.score import Score, score_tokens, token_costs


def position_losses(
    model: RetNet, lengths: list[int], **sizes: int
) -> tuple[Score, tuple[PositionLoss, ...]]:
    ids = np.random.default_rng(0).integers(3, 259, max(lengths))
    documents = [TokenDocument(ids[:length], length) for length in lengths]
    meter = PositionMeter()
    costs = meter.watching(token_costs(model))
    score = score_tokens(costs, documents, bos_id=1, device=torch.device("cpu"), **sizes)
    return score, meter.losses()


def test_the_definition(core: RetNet) -> None:
    """Each bucket is the mean over what one call for the whole text says of its tokens."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 259, 300))
    with torch.no_grad():
        logits = core(torch.cat([torch.tensor([1]), ids])[None, :-1])[0][0]
    nats = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    _, losses = position_losses(core, [300])
    assert [(loss.first, loss.last) for loss in losses] == [
        (0, 63),
        (64, 127),
        (128, 255),
        (256, 511),
    ]
    assert [loss.num_tokens for loss in losses] == [64, 64, 128, 44]
    for loss in losses:
        mean = float(nats[loss.first : loss.last + 1].mean())
        assert loss.bits_per_token == pytest.approx(mean / math.log(2), rel=1e-5)


@pytest.mark.parametrize(("batch_size", "piece_size"), [(1, 1000), (3, 16), (16, 100), (2, 63)])
def test_pieces_and_batches_change_nothing(core: RetNet, batch_size: int, piece_size: int) -> None:
    lengths = [1, 300, 64, 65, 0, 129]
    score, losses = position_losses(core, lengths, batch_size=batch_size, piece_size=piece_size)
    assert [loss.num_tokens for loss in losses] == [
        sum(max(0, min(length, end) - first) for length in lengths)
        for first, end in ((0, 64), (64, 128), (128, 256), (256, 512))
    ]
    bits = sum(loss.bits_per_token * loss.num_tokens for loss in losses)
    assert bits == pytest.approx(score.bits_per_byte * sum(lengths), rel=1e-6)
    _, whole = position_losses(core, lengths, batch_size=8, piece_size=1000)
    for loss, expected in zip(losses, whole, strict=True):
        assert loss.bits_per_token == pytest.approx(expected.bits_per_token, rel=1e-5)


def test_memory_does_not_grow_with_the_text() -> None:
    """The meter of a document of a billion tokens is that of a short one."""
    meter = PositionMeter()

    def costs(
        tokens: torch.Tensor, targets: torch.Tensor, state: RetNetState | None
    ) -> tuple[torch.Tensor, RetNetState]:
        assert state is not None
        return torch.full(targets.shape, math.log(2)) * (targets != IGNORED), state

    far = RetNetState((), torch.tensor([10**9, 10**9]))
    targets = torch.tensor([[5, 5, 5], [5, IGNORED, IGNORED]])
    before = {name: value.shape for name, value in vars(meter).items()}
    meter.watching(costs)(targets, targets, far)
    assert {name: value.shape for name, value in vars(meter).items()} == before
    assert meter.losses() == (PositionLoss(2**29, 2**30 - 1, 4, pytest.approx(1.0)),)
