"""The arithmetic coder, on any tokens with any probabilities."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retnet.eval.arithmetic import TOTAL, ArithmeticDecoder, ArithmeticEncoder, cumulative

Step = tuple[int, NDArray[np.int64]]

# Ordinary ones, ones of which one token has all, none or equal shares, and the outermost doubles.
LOGIT = st.one_of(
    st.floats(-20, 20), st.sampled_from([0.0, -math.inf, 1e3, -1e3, 1e30, -1e300, 1.7e308])
)


@st.composite
def a_step(draw: st.DrawFn) -> Step:
    """A token and the probabilities that it was drawn with, or against."""
    size = draw(st.integers(1, 300))
    logits = np.array(draw(st.lists(LOGIT, min_size=1, max_size=min(size, 8))) * size)[:size]
    if np.isneginf(logits).all():
        logits[draw(st.integers(0, size - 1))] = 0.0
    return draw(st.integers(0, size - 1)), cumulative(logits)


def encoded(steps: list[Step]) -> bytes:
    encoder = ArithmeticEncoder()
    for token, sums in steps:
        encoder.write(token, sums)
    return encoder.finish()


def decoded(code: bytes, steps: list[Step]) -> list[int]:
    decoder = ArithmeticDecoder(code)
    return [decoder.read(sums) for _, sums in steps]


def stated_bits(steps: list[Step]) -> float:
    return sum(-math.log2((sums[token + 1] - sums[token]) / TOTAL) for token, sums in steps)


@given(st.lists(a_step(), max_size=60))
def test_what_is_read_is_what_was_written(steps: list[Step]) -> None:
    """And it takes the bits that the probabilities say: two for the end, up to seven of a byte."""
    code = encoded(steps)
    assert decoded(code, steps) == [token for token, _ in steps]
    # The interval is at least 2^10 times as wide as the least probability's part of it, so rounding
    # costs or gains a token at most log2(1 + 2^-10) bits.
    assert stated_bits(steps) - 0.002 * len(steps) <= 8 * len(code)
    assert 8 * len(code) <= stated_bits(steps) + 0.002 * len(steps) + 2 + 7


@given(st.lists(a_step(), min_size=1, max_size=60), st.data())
def test_damage_ends(steps: list[Step], data: st.DataObject) -> None:
    """A damaged code is refused or gives other tokens, all of them ones that there are."""
    code = bytearray(encoded(steps))
    place = data.draw(st.integers(0, len(code) - 1))
    code[place] ^= data.draw(st.integers(1, 255))
    try:
        found = decoded(bytes(code), steps)
    except ValueError as error:
        assert "the code ends before its text does" in str(error)
    else:
        assert all(
            0 <= token < len(sums) - 1 for token, (_, sums) in zip(found, steps, strict=True)
        )


@given(st.lists(a_step(), max_size=60))
def test_a_code_that_is_cut_short_is_refused_in_the_end(steps: list[Step]) -> None:
    """However long one reads on: no token is free but one that is the only one."""
    code, (_, sums) = encoded(steps), (0, cumulative(np.zeros(4)))
    with pytest.raises(ValueError, match="the code ends before its text does"):
        decoder = ArithmeticDecoder(code[: len(code) // 2])
        for _ in range(8 * len(code) + 64):
            decoder.read(sums)


def test_long_texts_take_what_entropy_says() -> None:
    """100,000 tokens of which one has nearly all the probability, and then of equal ones."""
    rng = np.random.default_rng(0)
    for logits in (np.array([9.0, *[0.0] * 258]), rng.normal(size=259) * 3, np.zeros(259)):
        sums = cumulative(logits)
        tokens = rng.choice(259, size=100_000, p=np.diff(sums) / TOTAL)
        steps = [(int(token), sums) for token in tokens]
        code = encoded(steps)
        assert decoded(code, steps) == tokens.tolist()
        exact = logits - np.logaddexp.reduce(logits)
        assert 8 * len(code) == pytest.approx(-exact[tokens].sum() / math.log(2), rel=1e-6, abs=16)


@given(st.lists(LOGIT, min_size=1, max_size=300).filter(lambda logits: max(logits) > -math.inf))
def test_probabilities_as_whole_numbers(logits: list[float]) -> None:
    """Each has at least 1, all together TOTAL, and each is near to its share."""
    numbers = np.diff(cumulative(np.array(logits)))
    assert numbers.min() >= 1
    assert numbers.sum() == TOTAL
    with np.errstate(under="ignore"):
        shares = np.exp(np.array(logits) - max(logits))
    # A share gives what the others are lent, one each; and float64 rounds it.
    assert np.abs(numbers / TOTAL - shares / shares.sum()).max() <= 2 * len(logits) / TOTAL + 1e-15


@pytest.mark.parametrize(
    "logits", [[], [math.nan], [0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]]
)
def test_what_is_no_distribution_is_refused(logits: list[float]) -> None:
    with pytest.raises(ValueError, match="logits must"):
        cumulative(np.array(logits))


def test_without_tokens() -> None:
    assert len(encoded([])) == 1
