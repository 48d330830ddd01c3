"""What a state holds, and what it is compared with."""

import pytest
import torch

from retnet.tasks.capacity import recalled_by_attention, recalled_by_retention

ASKED = {"num_values": 256, "num_rows": 16, "seed": 0}


def test_a_single_pair_always_comes_back() -> None:
    """There is nothing to mistake it for, and decay changes no direction."""
    for key_size in (4, 32):
        assert recalled_by_retention(key_size, 1, gamma=0.5, **ASKED) == 1


def test_larger_states_hold_more() -> None:
    shares = [recalled_by_retention(size, 32, gamma=511 / 512, **ASKED) for size in (4, 8, 16, 64)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[-1] == 1


def test_attention_holds_all() -> None:
    assert recalled_by_attention(8, 128, sharpness=100, **ASKED) >= 0.99


def test_fast_decay_keeps_the_last_pairs_alone() -> None:
    slow, fast = (recalled_by_retention(32, 64, gamma=gamma, **ASKED) for gamma in (1.0, 0.5))
    assert fast < 0.3 < slow


@pytest.mark.parametrize("seed", [1, 2])
def test_seeds_differ_and_repeat(seed: int) -> None:
    asked = {**ASKED, "seed": seed}
    first, again = (recalled_by_retention(8, 16, gamma=1.0, **asked) for _ in range(2))
    torch.manual_seed(3)
    assert first == again != recalled_by_retention(8, 16, gamma=1.0, **ASKED)
