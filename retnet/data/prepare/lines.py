"""JSON lines: a document in a field of the object on each line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from retnet.data.prepare.inputs import cuts, file_identity, require_unchanged
from retnet.data.prepare.opening import is_compressed, open_input
from retnet.data.prepare.passages import Advance, BadTextError, Item, LeftOut, Passage
from retnet.data.prepare.texts import COMPRESSION_RATIO

SUFFIXES = (".jsonl", ".ndjson", ".json")

_BLOCK_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class LinesInput:
    """A file of JSON lines.

    Attributes:
        path: of the file.
        size: its bytes; changed_ns: when they were changed.
        field: of each line's object, which holds the text.
    """

    path: str
    size: int
    changed_ns: int
    field: str

    @property
    def expected_bytes(self) -> int:
        """About how much text it holds."""
        return self.size * (COMPRESSION_RATIO if is_compressed(Path(self.path)) else 1)

    def identity(self) -> list[Any]:
        """Its path, size and time."""
        return file_identity(self.path, self.size, self.changed_ns)

    def pieces(self, size: int) -> Iterator["LinesPiece"]:
        """Ranges of the file; a compressed one is one piece."""
        is_whole = is_compressed(Path(self.path))
        for start, stop in [(0, self.size)] if is_whole else cuts(self.size, size):
            yield LinesPiece(input=self, start=start, stop=stop)


@dataclass(frozen=True, kw_only=True)
class LinesPiece:
    """The lines that begin in a range of a file."""

    input: LinesInput
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
        """A document for each line, in their order; empty lines are none."""
        path = Path(self.input.path)
        stop = None if self.stop == self.input.size else self.stop
        with open_input(path, advance, start=max(0, self.start - 1)) as file:
            # What is at `start` begins there if a line does.
            start = self.start + (len(file.readline()) - 1 if self.start else 0)
            for number, line in enumerate(_lines(file, start, stop), 1):
                if not line.strip():
                    continue
                try:
                    yield self._document(line)
                except _LineError as error:
                    if not skip_bad:
                        before = _count_lines(path, self.start)
                        raise BadTextError(f"{path}, line {before + number}: {error}") from None
                    yield LeftOut("bad")
        require_unchanged(self.input.path, self.input.size, self.input.changed_ns)

    def _document(self, line: bytes) -> Item:
        text = self._text(line)
        if text is None:
            return LeftOut("empty")
        try:
            return Passage(text.encode())
        except UnicodeEncodeError as error:
            raise _LineError(
                f"{self.input.field!r} has half of a surrogate pair at character {error.start}; "
                "mend it, or pass skip_bad"
            ) from None

    def _text(self, line: bytes) -> str | None:
        """The text of a line; None where it is null."""
        try:
            row = json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode())
        except UnicodeDecodeError as error:
            raise _LineError(
                f"not UTF-8: its byte {error.start} is 0x{line[error.start]:02x}; convert the file "
                "to UTF-8, or pass skip_bad"
            ) from None
        except ValueError as error:
            raise _LineError(_what_it_is(line, error)) from None
        if not isinstance(row, dict):
            raise _LineError(_what_it_is(line, None))
        field = self.input.field
        if field not in row:
            names = ", ".join(map(repr, row)) or "none"
            raise _LineError(
                f"there is no field {field!r}, there are {names}; name one with text_field"
            )
        text: str | None = row[field]
        if text is not None and not isinstance(text, str):
            raise _LineError(f"{field!r} must be a text, got {str(text)[:50]!r}")
        return text


class _LineError(ValueError):
    """What is wrong with a line."""


def holds_lines(path: Path, field: str) -> bool:
    """Whether the first line of a file is a JSON object with a field."""
    with open_input(path, lambda _: None) as file:
        line = file.readline(_BLOCK_BYTES)
    try:
        row = json.loads(line.removeprefix(_BYTE_ORDER_MARK))
    except ValueError:
        return False
    return isinstance(row, dict) and field in row


def _lines(file: IO[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    """The lines that begin from `start` on and before `stop`."""
    position = start
    while lines := file.readlines(_BLOCK_BYTES):
        for line in lines:
            if stop is not None and position >= stop:
                return
            position += len(line)
            yield line


def _what_it_is(line: bytes, error: ValueError | None) -> str:
    shown = line[:40].decode(errors="replace").strip()
    if line.lstrip().startswith(b"["):
        return (
            f"it is an array: {shown!r}; each line must be an object with a text in it, which "
            "`jq -c '.[]' FILE` makes of a file that is one array"
        )
    reason = "" if error is None else f" ({error})"
    return f"not a JSON object{reason}: {shown!r}; mend it, or pass skip_bad"


def _count_lines(path: Path, size: int) -> int:
    """The lines that begin in the first bytes of a file."""
    count = 0
    last = b"\n"
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, _BLOCK_BYTES))):
            count += block.count(b"\n")
            size -= len(block)
            last = block[-1:]
    return count + (last != b"\n")
