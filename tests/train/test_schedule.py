from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retnet.train.schedule import learning_rate


def test_rises_to_the_peak_and_falls_to_nearly_zero() -> None:
    rates = [learning_rate(step, 100, peak=1.0, warmup_steps=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    differences = [b - a for a, b in pairwise(rates)]
    assert differences[:9] == pytest.approx([0.1] * 9)
    assert differences[10:] == pytest.approx([-1 / 90] * 89)


@given(st.integers(1, 300), st.integers(0, 300), st.floats(1e-5, 1.0))
def test_is_always_usable(num_steps: int, warmup_steps: int, peak: float) -> None:
    """Positive, at most the peak, and the peak is reached whatever the lengths."""
    rates = [
        learning_rate(step, num_steps, peak=peak, warmup_steps=warmup_steps)
        for step in range(num_steps)
    ]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(peak)
