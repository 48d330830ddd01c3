"""Documents as they come out of the input: whole, or in passages where they are long."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

# What is longer comes in passages and is always trained on, so that memory stays bounded.
LONGEST_WHOLE_BYTES = 1 << 24

# Where a cut is looked for.
WINDOW_BYTES = 1 << 16

_LINE_END = re.compile(rb"[^\s]\n(?=[^\s])")

Advance = Callable[[int], object]


class Passage(NamedTuple):
    """A document, or a part of a long one.

    text: UTF-8; begins, ends: whether its document does with it; held_out: where that is decided
    already, whether it is trained on.
    """

    text: bytes
    begins: bool = True
    ends: bool = True
    held_out: bool | None = None


class LeftOut(NamedTuple):
    """A document that is not prepared. reason: "empty", "binary", "bad"."""

    reason: str


Item = Passage | LeftOut


class BadTextError(ValueError):
    """Input that is not what it should be; says in which file and where."""


class Assembly:
    """Puts a document together from parts, as they come, and hands it out.

    begins: whether the first of them begins a document.
    """

    def __init__(self, *, begins: bool = True) -> None:
        self._begin(begins)

    def _begin(self, begins: bool) -> None:
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._begins = begins
        self._is_bad = False

    def add(self, part: bytes) -> Iterator[Passage]:
        """Some more text of the document; passages of it where it is long."""
        if self._is_bad:
            return
        self._parts.append(part)
        self._num_bytes += len(part)
        if self._num_bytes > LONGEST_WHOLE_BYTES:
            text = b"".join(self._parts)
            cut = cut_before(text, len(text))
            self._parts, self._num_bytes = [text[cut:]], len(text) - cut
            yield Passage(text[:cut], self._begins, ends=False)
            self._begins = False

    def spoil(self, error: BadTextError) -> None:
        """Leave this document out; raises the error where a passage of it is out already."""
        if not self._begins:
            raise error
        self._is_bad = True
        self._parts.clear()

    def end(self, *, ends: bool = True) -> Iterator[Item]:
        """What is left of the document; the next part begins another.

        ends: whether the document does.
        """
        if self._is_bad:
            yield LeftOut("bad")
        elif self._num_bytes or not self._begins:
            yield Passage(b"".join(self._parts), self._begins, ends)
        self._begin(True)


def cut_before(text: bytes, place: int, *, after: int = 0) -> int:
    """Where to cut a text in two, at or a little before `place`, and never inside a character.

    Tokenizers read a line's end between two printed characters apart from what follows it: there
    the two parts have the tokens of the whole. The cut is there if such an end is near, and beyond
    `after`.
    """
    start = max(after, place - WINDOW_BYTES)
    ends = [match.end() for match in _LINE_END.finditer(text, start, place)]
    return ends[-1] if ends else character_start(text, place)


def first_cut(window: bytes, place: int) -> int:
    """Where to cut a text in two in a window of it, at or after `place`.

    place: at most 2, which is as far back as is looked for a line's end. A later place's cut is
    never before an earlier one's.
    """
    end = _LINE_END.search(window)
    return place + first_character(window[place:]) if end is None else end.end()


def first_character(window: bytes) -> int:
    """Where the first character begins that isn't cut; the window's length for none."""
    starts = (place for place, byte in enumerate(window) if byte & 0xC0 != 0x80)
    return next(starts, len(window))


def character_start(text: bytes, place: int) -> int:
    """The start of the character that a place is in, or the place where it is between two."""
    while 0 < place < len(text) and text[place] & 0xC0 == 0x80:
        place -= 1
    return place
