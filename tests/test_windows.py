"""Text in windows: what is scored once, and with how much before it."""

import numpy as np
import pytest
import torch

from retnet.config import ModelConfig
from retnet.data.tokens import TokenDocument
from retnet.model import RetNet
from retnet.score import score_tokens, token_costs
from retnet.windows import Window, last_tokens, score_windows, sliding_windows

CPU = torch.device("cpu")
BOS = 30


def document(length: int, seed: int = 0) -> TokenDocument:
    ids = np.random.default_rng(seed).integers(BOS, size=length)
    return TokenDocument(ids, length)


@pytest.fixture(scope="module", params=["retention", "attention", "hyena"])
def model(request: pytest.FixtureRequest) -> RetNet:
    config = ModelConfig(
        mixer=request.param, vocab_size=31, d_model=16, num_layers=2, num_heads=2, decay="wide"
    )
    return RetNet(config, generator=torch.Generator().manual_seed(0)).eval()


def scored(windows: list[Window], number: int) -> list[int]:
    """The tokens of a document that windows score, in their order."""
    return [
        int(token)
        for window in windows
        if window.document == number
        for token in window.ids[1 + window.first_scored :]
    ]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 17, 31])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 4), (8, 3), (8, 1), (1, 1)])
def test_every_token_is_scored_once(length: int, window: int, stride: int) -> None:
    documents = [document(length), document(5, seed=1)]
    windows = list(sliding_windows(documents, bos_id=BOS, window=window, stride=stride))
    for number, each in enumerate(documents):
        assert scored(windows, number) == each.ids.tolist()
    for each in windows:
        assert len(each.ids) <= window + 1
        # Behind a document's beginning, each token has at least so many before it.
        assert each.ids[0] == BOS or each.first_scored >= window - stride


def test_empty_documents_have_no_window() -> None:
    assert not list(sliding_windows([document(0)], bos_id=BOS, window=4, stride=2))


@pytest.mark.parametrize("stride", [0, 9])
def test_a_wrong_stride(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride must be from 1 to the window of 8, got {stride}"):
        list(sliding_windows([document(9)], bos_id=BOS, window=8, stride=stride))


@torch.inference_mode()
def alone(model: RetNet, window: Window) -> float:
    """What a window's scored tokens cost, by the logits of it alone."""
    ids = torch.from_numpy(window.ids)
    logits, _ = model(ids[None, :-1])
    costs = -logits[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return float(costs[window.first_scored :].sum())


def test_cost_is_that_of_each_window_alone(model: RetNet) -> None:
    """However many are read together, and where they are filled up."""
    documents = [document(21), document(3, seed=1), document(10, seed=2)]
    windows = list(sliding_windows(documents, bos_id=BOS, window=8, stride=5))
    found = score_windows(token_costs(model), windows, device=CPU, batch_size=4)
    for number in range(len(documents)):
        expected = sum(alone(model, each) for each in windows if each.document == number)
        assert found.nats[number] == pytest.approx(expected, abs=1e-4)
    assert found.num_tokens == 34


def test_one_window_is_the_whole_document(model: RetNet) -> None:
    """The same figure as reading from the beginning to the end with the state carried."""
    documents = [document(21), document(8, seed=1)]
    windows = sliding_windows(documents, bos_id=BOS, window=64, stride=32)
    found = score_windows(token_costs(model), windows, device=CPU)
    whole = score_tokens(token_costs(model), documents, bos_id=BOS, device=CPU, piece_size=5)
    assert found.total_nats == pytest.approx(whole.total_nats, abs=1e-4)


def test_last_tokens(model: RetNet) -> None:
    """Whatever the context, the same tokens are scored: the last of every chunk."""
    documents = [document(40), document(15, seed=1)]
    for context in (4, 8, 16):
        windows = list(last_tokens(documents, chunk=16, context=context, scored=4))
        assert scored(windows, 0) == [*documents[0].ids[13:17], *documents[0].ids[29:33]]
        assert {len(each.ids) for each in windows} == {context + 1}
        assert {each.document for each in windows} == {0}
        found = score_windows(token_costs(model), windows, device=CPU)
        assert found.num_tokens == 8
        expected = sum(alone(model, each) for each in windows)
        assert found.total_nats == pytest.approx(expected, abs=1e-4)


def test_chunks_must_hold_what_is_scored() -> None:
    with pytest.raises(ValueError, match="got 8, 16 and 4"):
        list(last_tokens([document(20)], chunk=8, context=16, scored=4))


def test_nothing_to_score(model: RetNet) -> None:
    windows = last_tokens([document(5)], chunk=8, context=8, scored=4)
    with pytest.raises(ValueError, match="no document is long enough"):
        score_windows(token_costs(model), windows, device=CPU)


def test_bits_and_progress(model: RetNet) -> None:
    seen: list[int] = []
    windows = list(sliding_windows([document(20)], bos_id=BOS, window=8, stride=8))
    found = score_windows(
        token_costs(model), windows, device=CPU, batch_size=2, progress=seen.append
    )
    assert seen == [16, 4]
    assert found.bits_per_token == pytest.approx(found.total_nats / np.log(2) / 20)
