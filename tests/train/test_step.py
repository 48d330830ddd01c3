"""A step's gradients are those of its definition, however it is cut up."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from retnet.config import ModelConfig
from retnet.data.batches import Batch, Streams
from retnet.data.text import Document
from retnet.data.tokens import TokenArray, token_stream
from retnet.model import RetNet, RetNetState
from retnet.train.objective import NextTokenLoss
from retnet.train.step import Accumulation

MODEL = ModelConfig(d_model=32, num_layers=2, num_heads=2, score_norm="decay")
STREAM = token_stream(
    [Document(str(size), bytes(range(size))) for size in (30, 70, 2, 101, 40, 60)]
)


def model() -> RetNet:
    made = RetNet(MODEL, generator=torch.Generator().manual_seed(0))
    return made.double()


def batch(step: int, *, context: int = 64, batch_size: int = 2) -> Batch:
    streams = Streams(
        stream=TokenArray(STREAM),
        context=context,
        batch_size=batch_size,
        seed=0,
        bos_id=1,
        eos_id=2,
    )
    return streams.batch(step)


def accumulation(of: RetNet, **changes: Any) -> Accumulation:
    chosen: dict[str, Any] = dict(
        loss=NextTokenLoss(of),
        bos_id=1,
        num_parts=1,
        num_windows=1,
        forward=lambda part, window: nullcontext(),
        backward=lambda is_last: nullcontext(),
    )
    return Accumulation(**(chosen | changes))


def run(
    rows: Batch, state: RetNetState | None = None, **changes: Any
) -> tuple[torch.Tensor, RetNetState, list[torch.Tensor]]:
    """The loss, the state after, and all gradients."""
    learning = model()
    loss, after = accumulation(learning, **changes).run(rows, state)
    return loss, after, [weight.grad for weight in learning.parameters() if weight.grad is not None]


def assert_same(first: Any, second: Any) -> None:
    tensors = [[each[0], *each[1].layers, each[1].position, *each[2]] for each in (first, second)]
    for one, other in zip(*tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("num_parts", "num_windows"), [(2, 1), (1, 2), (1, 8), (2, 4), (1, 64)])
def test_parts_and_windows_change_nothing(num_parts: int, num_windows: int) -> None:
    """Gradients flow from window to window through the state, as if it were one window; documents
    that begin in one, or just with one, see nothing of those before."""
    whole = run(batch(0))
    assert_same(run(batch(0), num_parts=num_parts, num_windows=num_windows), whole)


def test_a_state_is_gone_on_from() -> None:
    """Two steps that carry the state see what one of both windows sees; the second's gradients end
    at the first window's end."""
    both = batch(0, context=128)
    first = Batch(
        *(None if x is None or x.dim() == 1 else x[:, :64] for x in both[:3]), both.starts
    )
    second = Batch(*(None if x is None else x[:, 64:] for x in both[:3]), both.starts)
    whole, whole_after, _ = run(both)
    loss, after, _ = run(first)
    next_loss, last, _ = run(second, after)
    torch.testing.assert_close((loss + next_loss) / 2, whole)
    for mine, theirs in zip(last.layers, whole_after.layers, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert torch.equal(last.position, whole_after.position)
    assert not any(layer.requires_grad for layer in last.layers)


def test_a_document_that_begins_a_window_sees_no_state() -> None:
    rows = batch(0, batch_size=1)
    assert rows.tokens[0, 0] == 1
    _, after, _ = run(batch(3, batch_size=1))
    assert_same(run(rows, after), run(rows))


def test_dropout_is_drawn_again_for_the_backward_pass() -> None:
    """A window is read twice; `forward` is told which it is, so that it can be read the same."""
    seen: list[tuple[int, int]] = []

    def forward(part: int, window: int) -> Any:
        seen.append((part, window))
        return nullcontext()

    last: list[bool] = []

    def backward(is_last: bool) -> Any:
        last.append(is_last)
        return nullcontext()

    run(batch(0), num_parts=2, num_windows=4, forward=forward, backward=backward)
    once = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 2), (0, 1), (0, 0)]
    assert seen == [*once, *((1, window) for _, window in once)]
    assert last == [False] * 7 + [True]
