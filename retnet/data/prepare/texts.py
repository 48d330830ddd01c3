"""Text files: as one document each, or divided at lines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import IO, Any, NamedTuple

from retnet.data.prepare.inputs import cuts, file_identity, require_unchanged
from retnet.data.prepare.opening import is_compressed, open_input
from retnet.data.prepare.passages import (
    WINDOW_BYTES,
    Advance,
    Assembly,
    BadTextError,
    Item,
    LeftOut,
    first_character,
    first_cut,
)

# What text is usually compressed to.
COMPRESSION_RATIO = 4

_BLOCK_BYTES = 1 << 22
# Beyond its range a piece reads only to the end of its last document.
_AFTER_BYTES = 1 << 18
_LONGEST_LINE_BYTES = 1 << 20
_PROBE_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Division:
    """Where a text file is divided into documents: at the lines in which `pattern` is found.

    keeps_line: whether such a line begins the next document; otherwise it belongs to none. Lines of
    1 MB and more are never looked at: not all of one need be in memory.
    """

    pattern: str
    keeps_line: bool

    def places(self, text: str, *, at_line_start: bool) -> Iterator[tuple[int, int]]:
        """Where documents end in some whole lines, and where the next begin.

        at_line_start: whether the text begins where a line does.
        """
        last = -1
        for match in re.compile(self.pattern, re.MULTILINE).finditer(text):
            line = text.rfind("\n", 0, match.start()) + 1
            if line == last or line == len(text) or (line == 0 and not at_line_start):
                continue
            last = line
            end = text.find("\n", match.start()) + 1 or len(text)
            if not _is_long(text[line:end]):
                yield line, line if self.keeps_line else end


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """A text file.

    Attributes:
        path: of the file.
        size: its bytes; changed_ns: when they were changed.
        division: where its documents begin; None where it is one.
        is_found: whether it was found in a folder; then it is left out if it is binary.
    """

    path: str
    size: int
    changed_ns: int
    division: Division | None
    is_found: bool

    @property
    def expected_bytes(self) -> int:
        """About how much text it holds."""
        return self.size * (COMPRESSION_RATIO if is_compressed(Path(self.path)) else 1)

    def identity(self) -> list[Any]:
        """Its path, size and time."""
        return file_identity(self.path, self.size, self.changed_ns)

    def pieces(self, size: int) -> Iterator["TextPiece"]:
        """Ranges of the file; a compressed one is one piece."""
        is_whole = is_compressed(Path(self.path))
        for start, stop in [(0, self.size)] if is_whole else cuts(self.size, size):
            yield TextPiece(input=self, start=start, stop=stop)


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """The documents that begin in a range of a text file, or that range of one long document."""

    input: TextInput
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """The length of the range."""
        return self.stop - self.start

    @property
    def expected_bytes(self) -> int:
        """About how much text it holds."""
        return self.num_bytes * self.input.expected_bytes // max(1, self.input.size)

    def items(self, advance: Advance, *, skip_bad: bool) -> Iterator[Item]:
        """The documents of the range, in their order."""
        path = Path(self.input.path)
        if self.input.is_found and self._is_binary(path):
            if self.start == 0:
                yield LeftOut("binary")
            advance(self.num_bytes)
        elif self.input.division is None:
            yield from self._range(path, advance, skip_bad)
        else:
            yield from self._divided(path, self.input.division, advance, skip_bad)
        require_unchanged(self.input.path, self.input.size, self.input.changed_ns)

    def _is_binary(self, path: Path) -> bool:
        with open_input(path, lambda _: None) as file:
            return b"\0" in file.read(_PROBE_BYTES)

    def _range(self, path: Path, advance: Advance, skip_bad: bool) -> Iterator[Item]:
        """The range as a part of one document."""
        size = self.input.size
        is_whole = (self.start, self.stop) == (0, size)
        start = 0 if is_whole else _cut_near(path, self.start, size)
        stop = None if is_whole else _cut_near(path, self.stop, size)
        document = Assembly(begins=self.start == 0)
        with open_input(path, advance, start=start) as file:
            length = None if stop is None else stop - start
            for block in _blocks(file, start, _sizes(length)):
                error = _utf8_error(path, block)
                if error is not None:
                    if not (skip_bad and is_whole):
                        raise error
                    document.spoil(error)
                yield from document.add(block.data)
        yield from document.end(ends=self.stop == size)

    def _divided(
        self, path: Path, division: Division, advance: Advance, skip_bad: bool
    ) -> Iterator[Item]:
        """The documents that begin in the range; the last may end beyond it."""
        document = Assembly()
        is_inside = self.start == 0
        with open_input(path, advance, start=max(0, self.start - 1)) as file:
            # What is at `start` begins there if a line does.
            start = self.start + (_skip_line(file) - 1 if self.start else 0)
            is_last = self.stop == self.input.size
            sizes = _sizes(None if is_last else self.stop - start, _AFTER_BYTES)
            for block in _blocks(file, start, sizes, to_line_ends=True):
                text, error = _text(path, block)
                if error is not None and not skip_bad:
                    raise error
                place, beyond = 0, self._beyond(block)
                for end, begin in division.places(text, at_line_start=block.at_line_start):
                    if is_inside:
                        yield from _add(document, text[place:end], error)
                        yield from document.end()
                    if end >= beyond:
                        return
                    is_inside, place = True, begin
                if is_inside:
                    yield from _add(document, text[place:], error)
        if is_inside:
            yield from document.end()

    def _beyond(self, block: "_Block") -> float:
        """The first character of a block's text that is outside of the range; inf for none."""
        inside = max(0, self.stop - block.start)
        if self.stop == self.input.size or inside >= len(block.data):
            return inf
        inside += first_character(block.data[inside : inside + 4])
        return len(block.data[:inside].decode(errors="surrogateescape"))


class _Block(NamedTuple):
    """Some text of a file: whole characters, as far as they are UTF-8. start: where it stands."""

    start: int
    data: bytes
    at_line_start: bool


def _sizes(length: int | None, after: int = 0) -> Iterator[int]:
    """What to read of a file at once: `length` bytes in blocks, then on and on `after`."""
    while length is None or length > 0:
        size = _BLOCK_BYTES if length is None else min(_BLOCK_BYTES, length)
        yield size
        length = None if length is None else length - size
    while after:
        yield after


def _blocks(
    file: IO[bytes], start: int, sizes: Iterator[int], *, to_line_ends: bool = False
) -> Iterator[_Block]:
    """What is read of a file from `start` on, as far as it goes.

    to_line_ends: read on to the end of the line each time, if that is not far.
    """
    carried, at_line_start, position = b"", True, start
    for size in sizes:
        data = file.read(size)
        if not data:
            break
        if to_line_ends and not data.endswith(b"\n"):
            data += file.readline(_LONGEST_LINE_BYTES)
        position += len(data)
        data = carried + data
        whole = _whole_characters(data)
        carried, data = data[whole:], data[:whole]
        if data:
            yield _Block(position - len(carried) - len(data), data, at_line_start)
            at_line_start = data.endswith(b"\n")
    if carried:  # a character that has no end
        yield _Block(position - len(carried), carried, at_line_start)


def _whole_characters(data: bytes) -> int:
    """The length of some bytes without the character at their end that isn't whole."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0xC0:  # the first of two or more
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < width else len(data)
        if byte < 0x80:
            break
    return len(data)


def _cut_near(path: Path, place: int, size: int) -> int:
    """Where a file of one document is cut in two, at or a little after a place in it."""
    if place in (0, size):
        return place
    with path.open("rb") as file:
        before = min(2, place)
        file.seek(place - before)
        return place - before + first_cut(file.read(WINDOW_BYTES), before)


def _is_long(line: str) -> bool:
    """Whether a line may be a part of one that did not fit into a block."""
    if 4 * len(line) + 3 < _LONGEST_LINE_BYTES:
        return False
    # Up to three bytes of a part may be in the next block, with the character that they begin.
    return len(line.encode(errors="surrogateescape")) + 3 >= _LONGEST_LINE_BYTES


def _skip_line(file: IO[bytes]) -> int:
    """Read to the end of a line; its length."""
    size = 0
    while line := file.readline(_LONGEST_LINE_BYTES):
        size += len(line)
        if line.endswith(b"\n"):
            break
    return size


def _add(document: Assembly, text: str, error: BadTextError | None) -> Iterator[Item]:
    """Some text goes to a document, which is left out where it isn't UTF-8."""
    try:
        part = text.encode()
    except UnicodeEncodeError:
        assert error is not None
        document.spoil(error)
    else:
        yield from document.add(part)


def _utf8_error(path: Path, block: _Block) -> BadTextError | None:
    return None if block.data.isascii() else _text(path, block)[1]


def _text(path: Path, block: _Block) -> tuple[str, BadTextError | None]:
    """The characters of a block, a surrogate for a byte that is in none; what is wrong with it."""
    try:
        return block.data.decode(), None
    except UnicodeDecodeError as error:
        return block.data.decode(errors="surrogateescape"), BadTextError(
            f"data file {str(path)!r} is not UTF-8: byte {block.start + error.start} is "
            f"0x{block.data[error.start]:02x}; convert it to UTF-8, leave it out, or pass skip_bad"
        )
