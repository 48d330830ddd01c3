"""What all kinds of input are asked for."""

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Protocol

from retnet.data.prepare.passages import Advance, BadTextError, Item


class Piece(Protocol):
    """A part of the input that is read by itself, by any process, always with the same result."""

    @property
    def num_bytes(self) -> int | None:
        """What there is to read, as `items` counts it; None where that isn't known."""

    @property
    def expected_bytes(self) -> int | None:
        """About how much text that is."""

    def items(self, advance: Advance, *, skip_bad: bool) -> Iterator[Item]:
        """The documents, in their order. advance: called with the bytes read, again and again.

        skip_bad: hand out LeftOut for a document that is not what it should be. Without that raises
        BadTextError, which says in which file and where it is.
        """


class Input(Protocol):
    """A file or data set."""

    @property
    def expected_bytes(self) -> int | None:
        """About how much text it holds; None where that isn't known."""

    def identity(self) -> list[Any]:
        """What is different once the input has changed, its name first; for JSON."""

    def pieces(self, size: int) -> Iterator[Piece]:
        """It in pieces of about `size` bytes of text, as far as it can be divided."""


def file_identity(path: str, size: int, changed_ns: int) -> list[Any]:
    """What tells a file from the same one after a change."""
    return [path, size, changed_ns]


def require_unchanged(path: str, size: int, changed_ns: int) -> None:
    """BadTextError where a file is not what it was when the work was planned."""
    status = os.stat(path)
    if (status.st_size, status.st_mtime_ns) != (size, changed_ns):
        raise BadTextError(f"{path} was changed while it was read; begin anew once it rests")


def cuts(size: int, piece: int) -> list[tuple[int, int]]:
    """A range [0, size) in about equal parts of about `piece`: (start, stop) of each."""
    count = max(1, round(size / piece))
    places = [size * index // count for index in range(count + 1)]
    return list(pairwise(places))


def sum_of_known(sizes: Iterable[int | None]) -> int | None:
    """The sum of some sizes; None where one isn't known."""
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total
