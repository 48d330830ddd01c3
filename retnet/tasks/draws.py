"""Random numbers that tasks are made of: functions of (seed, step), rows drawn all at once."""

import numpy as np
from numpy.typing import NDArray

# The seed of what models are tested on; training takes smaller ones.
TEST_SEED = 2**32

Ints = NDArray[np.int64]


def generator(seed: int, step: int) -> np.random.Generator:
    """The same numbers for the same (seed, step), and for no other pair of them."""
    for name, value in (("seed", seed), ("step", step)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    # Not [seed, step] as entropy: of two lists of numbers one may be the other cut elsewhere.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))


def distinct(
    rng: np.random.Generator, low: int, high: int, *, num_rows: int, num_columns: int
) -> Ints:
    """[num_rows, num_columns] numbers in [low, high), no number twice in a row."""
    drawn = np.empty((num_rows, 0), dtype=np.int64)
    for column in range(num_columns):
        next_ = rng.integers(high - low - column, size=(num_rows, 1))
        drawn = np.concatenate([drawn, leaving_out(next_, drawn)], axis=1)
    return drawn + low


def leaving_out(numbers: Ints, taken: Ints) -> Ints:
    """Numbers 0, 1, 2, ... [B, M] as those not taken [B, N] by their row, in ascending order.

    taken: no number twice in a row.
    """
    # How many numbers that are not taken lie below each one that is.
    below = np.sort(taken, axis=1) - np.arange(taken.shape[1])
    return numbers + (below[:, None, :] <= numbers[:, :, None]).sum(axis=2)


def filler(rng: np.random.Generator, vocab_size: int, length: int, absent: Ints) -> Ints:
    """[B, length] ids below vocab_size without those in absent [B, N], which differ in a row."""
    num_rows, num_absent = absent.shape
    return leaving_out(rng.integers(vocab_size - num_absent, size=(num_rows, length)), absent)


def power_law_places(
    rng: np.random.Generator, power: float, *, num_places: int, num_rows: int, num_columns: int
) -> Ints:
    """[num_rows, num_columns] of the places 0 ... num_places - 1, none twice in a row.

    They are drawn one after the other, place x with a chance that goes as (x + 1)^(power - 1) among
    those left: near ones first, mostly. A power of 1 favours none.
    """
    # The first of independent waiting times is i with a chance that goes as its rate, and so on
    # among the rest: sorting them draws without repetition.
    rates = np.arange(1, num_places + 1) ** (power - 1)
    waits = rng.standard_exponential((num_rows, num_places)) / rates
    return np.argsort(waits, axis=1)[:, :num_columns]
