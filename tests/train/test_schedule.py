from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retnet.train.config import OptimizerConfig, Schedule
from retnet.train.schedule import learning_rate


def test_rises_to_the_peak_and_falls_to_nearly_zero() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[-1] == pytest.approx(1 / 90)
    differences = [b - a for a, b in pairwise(rates)]
    assert differences[:9] == pytest.approx([0.1] * 9)
    assert differences[10:] == pytest.approx([-1 / 90] * 89)


def test_half_a_wave() -> None:
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=0, final_share=0.1)
    rates = [learning_rate(step, 1000, config) for step in range(1000)]
    assert rates[0] == 1.0
    assert rates[500] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert sorted(rates, reverse=True) == rates


def test_stable_until_the_last_part() -> None:
    """How long a run is only counts once its rate falls, so that it can be made longer before."""
    config = OptimizerConfig(learning_rate=1.0, schedule="wsd", warmup_steps=10, decay_share=0.3)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[9:71] == [1.0] * 62
    assert rates[71:] == pytest.approx([left / 30 for left in range(29, 0, -1)])


@given(
    st.integers(1, 300),
    st.integers(0, 300),
    st.floats(1e-5, 1.0),
    st.sampled_from(("linear", "cosine", "wsd")),
    st.floats(0, 1),
)
def test_is_always_usable(
    num_steps: int, warmup_steps: int, peak: float, schedule: Schedule, share: float
) -> None:
    """Positive, at most the peak, and the peak is reached whatever the lengths."""
    config = OptimizerConfig(
        learning_rate=peak,
        warmup_steps=warmup_steps,
        schedule=schedule,
        decay_share=share,
        final_share=share,
    )
    rates = [learning_rate(step, num_steps, config) for step in range(num_steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(peak)
