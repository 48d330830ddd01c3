"""The state of two stretches of tokens from the state of each: what splitting a sequence over
machines needs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retnet import ops

GAMMAS = (1e-3, 0.5, 31 / 32, 1.0)


def stretch(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k [3, T, 4, 2] and v [3, T, 4, 5]."""
    rng = torch.Generator().manual_seed(seed)
    sizes = (2, 2, 5)
    return [
        torch.randn(3, tokens, 4, n, generator=rng, dtype=torch.float64).to(dtype) for n in sizes
    ]


def log_decay() -> Tensor:
    return torch.tensor(GAMMAS, dtype=torch.float64).log()


def state_of(qkv: list[Tensor]) -> Tensor:
    return ops.retention_chunkwise(*qkv, log_decay())[1]


@given(total=st.integers(0, 60), data=st.data())
def test_two_stretches_as_one(total: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, total))
    qkv = stretch(total)
    first, second = ([x[:, part] for x in qkv] for part in (slice(cut), slice(cut, None)))
    combined = ops.combine_states(state_of(first), state_of(second), log_decay(), total - cut)
    torch.testing.assert_close(combined, state_of(qkv), rtol=1e-12, atol=1e-12)


def test_a_length_for_each_row() -> None:
    """Rows whose second stretches differ in length: 0, 3 and 7 tokens."""
    lengths = torch.tensor([0, 3, 7])
    qkv = stretch(10)
    rows = [[x[row : row + 1] for x in qkv] for row in range(3)]
    read = [[x[:, : 3 + n] for x in row] for row, n in zip(rows, lengths.tolist(), strict=True)]
    expected = torch.cat([state_of(row) for row in read])
    first = state_of([x[:, :3] for x in qkv])
    second = torch.cat([state_of([x[:, 3:] for x in row]) for row in read])
    combined = ops.combine_states(first, second, log_decay(), lengths)
    torch.testing.assert_close(combined, expected, rtol=1e-12, atol=1e-12)


def test_grouping_does_not_matter() -> None:
    """(a + b) + c = a + (b + c): states may be combined in a tree."""
    lengths = (4, 9, 2)
    a, b, c = (state_of(stretch(n, seed)) for seed, n in enumerate(lengths))
    left = ops.combine_states(ops.combine_states(a, b, log_decay(), 9), c, log_decay(), 2)
    right = ops.combine_states(a, ops.combine_states(b, c, log_decay(), 2), log_decay(), 11)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_an_empty_stretch_is_neutral() -> None:
    state = state_of(stretch(6))
    nothing = torch.zeros_like(state)
    assert torch.equal(ops.combine_states(state, nothing, log_decay(), 0), state)
    assert torch.equal(ops.combine_states(nothing, state, log_decay(), 6), state)


def test_fp32_states_stay_fp32_and_untouched() -> None:
    first, second = (state_of(stretch(5, seed, torch.bfloat16)) for seed in (0, 1))
    before = first.clone(), second.clone()
    combined = ops.combine_states(first, second, log_decay().float(), torch.tensor(5))
    assert combined.dtype == torch.float32
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


def test_gradients_flow() -> None:
    states = [torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def combine(first: Tensor, second: Tensor) -> Tensor:
        return ops.combine_states(first, second, log_decay(), torch.tensor([2, 5]))

    assert torch.autograd.gradcheck(combine, states)


STATE = torch.zeros(3, 4, 2, 5)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "gamma for log_decay": (
        lambda: ops.combine_states(STATE, STATE, torch.full((4,), 0.9), 3),
        r"log_decay must be <= 0, got max 0.9; pass log\(gamma\), not gamma",
    ),
    "log_decay of one head": (
        lambda: ops.combine_states(STATE, STATE, torch.full((1,), -0.1), 3),
        "log_decay must be",
    ),
    "states of two shapes": (
        lambda: ops.combine_states(STATE, STATE[:1], torch.full((4,), -0.1), 3),
        "first and second must",
    ),
    "a negative length": (
        lambda: ops.combine_states(STATE, STATE, torch.full((4,), -0.1), -3),
        "num_tokens_second must be",
    ),
    "lengths of another batch": (
        lambda: ops.combine_states(STATE, STATE, torch.full((4,), -0.1), torch.tensor([1, 2])),
        "num_tokens_second must be",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_argument(bad: str) -> None:
    call, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        call()
