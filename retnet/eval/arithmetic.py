"""Arithmetic coding: a text takes the bits that its tokens' probabilities say, and two more.

Witten, Neal and Cleary, "Arithmetic coding for data compression", Communications of the ACM 30(6),
1987, in integers, so nothing of the coder can round differently where a code is read. Theirs are of
16 bits. Here a token costs at most 48 bits, and rounding none that could be measured: in registers
of 32 bits a model that is sure of the wrong tokens would get a smaller code than it states.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Probabilities are whole numbers out of so many. The interval that they divide is never narrower
# than 2^58, so each token has a part of it.
TOTAL = 2**48

_BITS = 60
_HALF, _QUARTER = 2 ** (_BITS - 1), 2 ** (_BITS - 2)
_MAX_TOKENS = 2**32


def cumulative(logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """Softmax as whole numbers, at least 1 for each token, as the sums of those before: from
    logits [V] to [V + 1], from 0 to TOTAL.

    It is computed in float64. The same logits give the same numbers: arrays of one length are
    summed in one order.

    Raises:
        ValueError: for logits that are no distribution.
    """
    exact = logits.astype(np.float64)
    if not 1 <= len(exact) <= _MAX_TOKENS:
        raise ValueError(f"logits must be of 1 to {_MAX_TOKENS} tokens, got {len(exact)}")
    top = exact.argmax()
    if not np.isfinite(exact[top]):  # argmax finds a NaN where there is one
        raise ValueError(f"logits must have a finite largest one, got {exact[top]}")
    weights = np.exp(exact - exact[top])
    numbers = (weights / weights.sum() * (TOTAL - len(weights))).astype(np.int64) + 1
    numbers[top] += TOTAL - numbers.sum()
    return np.concatenate([np.zeros(1, np.int64), numbers.cumsum()])


class _Interval:
    """Where the rest of a code lies: [low, high], of 60 bits each."""

    def __init__(self) -> None:
        self.low, self.high = 0, 2**_BITS - 1

    @property
    def size(self) -> int:
        return self.high - self.low + 1

    def narrow_(self, start: int, stop: int) -> None:
        """To the part [start, stop) of TOTAL."""
        low, size = self.low, self.size
        self.low, self.high = low + size * start // TOTAL, low + size * stop // TOTAL - 1

    def doublings_(self) -> Iterator[int]:
        """Double the interval while a half, or the half in the middle, has all of it.

        Yields where that half begins: 0, _HALF, or _QUARTER for the one in the middle.
        """
        while True:
            if self.high < _HALF:
                begin = 0
            elif self.low >= _HALF:
                begin = _HALF
            elif self.low >= _QUARTER and self.high < _HALF + _QUARTER:
                begin = _QUARTER
            else:
                return
            self.low, self.high = 2 * (self.low - begin), 2 * (self.high - begin) + 1
            yield begin


class ArithmeticEncoder:
    """Writes a code, a token after the other."""

    def __init__(self) -> None:
        self._interval = _Interval()
        self._bits = bytearray()
        # Doublings of the middle: the bits that they stand for are the opposite of the next one.
        self._num_pending = 0

    def write(self, token: int, sums: NDArray[np.int64]) -> None:
        """Add a token. sums: [V + 1], see `cumulative`."""
        self._interval.narrow_(int(sums[token]), int(sums[token + 1]))
        for begin in self._interval.doublings_():
            if begin == _QUARTER:
                self._num_pending += 1
            else:
                self._write_bit(begin == _HALF)

    def finish(self) -> bytes:
        """The code; nothing may be written after this."""
        self._num_pending += 1
        self._write_bit(self._interval.low >= _QUARTER)
        return np.packbits(np.frombuffer(self._bits, np.uint8)).tobytes()

    def _write_bit(self, bit: bool) -> None:
        self._bits.append(bit)
        self._bits.extend(bytes([not bit]) * self._num_pending)
        self._num_pending = 0


class ArithmeticDecoder:
    """Reads a code, a token after the other."""

    def __init__(self, code: bytes) -> None:
        self._interval = _Interval()
        self._bits = np.unpackbits(np.frombuffer(code, np.uint8)).tobytes()
        self._place = self._value = 0
        for _ in range(_BITS):
            self._value = 2 * self._value + self._next_bit()

    def read(self, sums: NDArray[np.int64]) -> int:
        """The next token. sums: as when it was written.

        Raises:
            ValueError: where the code has ended.
        """
        interval = self._interval
        place = ((self._value - interval.low + 1) * TOTAL - 1) // interval.size
        token = int(sums.searchsorted(place, side="right")) - 1
        interval.narrow_(int(sums[token]), int(sums[token + 1]))
        for begin in interval.doublings_():
            self._value = 2 * (self._value - begin) + self._next_bit()
        return token

    def _next_bit(self) -> int:
        """Zeros stand after the end, of which no more are read than the encoder left out."""
        place, self._place = self._place, self._place + 1
        if place < len(self._bits):
            return self._bits[place]
        if place >= len(self._bits) + _BITS - 2:
            raise ValueError("the code ends before its text does; is a part of it missing?")
        return 0
