"""A permutation whose every entry can be asked for alone, however many there are."""

from collections.abc import Sequence

import numpy as np

_ROUNDS = 4


def shuffled(index: int, size: int, *, seed: Sequence[int]) -> int:
    """Where a permutation of 0 ... size - 1 takes an index; another permutation for each seed.

    A Feistel network of four rounds permutes the numbers of an even count of bits; what falls
    outside of the range goes through it again (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002).
    """
    if not 0 <= index < size:
        raise ValueError(f"index must be in [0, {size}), got {index}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [int(key) for key in np.random.SeedSequence(list(seed)).generate_state(_ROUNDS)]
    index = _permuted(index, half, keys)
    while index >= size:
        index = _permuted(index, half, keys)
    return index


def _permuted(number: int, half: int, keys: Sequence[int]) -> int:
    """A permutation of the numbers below 4^half."""
    mask = (1 << half) - 1
    left, right = number >> half, number & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return left << half | right


def _mixed(number: int) -> int:
    """A 64-bit number as another, every bit depending on all (the finaliser of SplitMix64)."""
    number = (number * 0x9E3779B97F4A7C15) % 2**64
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) % 2**64
    return number ^ (number >> 31)
