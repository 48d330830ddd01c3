"""Parquet files: a document in a column of each row."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retnet.data.prepare.inputs import file_identity, require_unchanged
from retnet.data.prepare.passages import Advance, BadTextError, Item, LeftOut, Passage

SUFFIX = ".parquet"

_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class RowsInput:
    """A parquet file.

    Attributes:
        path: of the file.
        size: its bytes; changed_ns: when they were changed.
        column: with the texts.
        group_bytes: text in each of its row groups.
    """

    path: str
    size: int
    changed_ns: int
    column: str
    group_bytes: tuple[int, ...]

    @property
    def expected_bytes(self) -> int:
        """About how much text it holds."""
        return sum(self.group_bytes)

    def identity(self) -> list[Any]:
        """Its path, size and time."""
        return file_identity(self.path, self.size, self.changed_ns)

    def pieces(self, size: int) -> Iterator["RowsPiece"]:
        """Row groups, as many to a piece as its size takes."""
        start, gathered = 0, 0
        for group, num_bytes in enumerate(self.group_bytes):
            if group > start and gathered + num_bytes > size:
                yield RowsPiece(input=self, start=start, stop=group)
                start, gathered = group, 0
            gathered += num_bytes
        yield RowsPiece(input=self, start=start, stop=len(self.group_bytes))


@dataclass(frozen=True, kw_only=True)
class RowsPiece:
    """The rows of some groups, from `start` to before `stop`."""

    input: RowsInput
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Text in the groups."""
        return sum(self.input.group_bytes[self.start : self.stop])

    @property
    def expected_bytes(self) -> int:
        """The same."""
        return self.num_bytes

    def items(self, advance: Advance, *, skip_bad: bool) -> Iterator[Item]:
        """A document for each row, in their order."""
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.compute as pc  # type: ignore[import-untyped]

        for group in range(self.start, self.stop):
            row = 0
            for column in _columns(self.input, group):
                texts = column
                if pa.types.is_dictionary(column.type):
                    texts = column.dictionary_decode()
                for text in pc.cast(texts, pa.large_binary()).to_pylist():
                    row += 1
                    if text is None:
                        yield LeftOut("empty")
                        continue
                    advance(len(text))
                    error = None if text.isascii() else _utf8_error(self.input, group, row, text)
                    if error is not None and not skip_bad:
                        raise error
                    yield Passage(text) if error is None else LeftOut("bad")
        require_unchanged(self.input.path, self.input.size, self.input.changed_ns)


def open_rows(path: Path, size: int, changed_ns: int, column: str) -> RowsInput:
    """A parquet file; BadTextError where it isn't one, or has no such column of texts."""
    file = _open(path)
    import pyarrow as pa

    schema = file.schema_arrow
    names = ", ".join(map(repr, schema.names))
    if column not in schema.names:
        raise BadTextError(
            f"{path}: there is no column {column!r}, there are {names}; name one with text_field"
        )
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise BadTextError(f"{path}: column {column!r} must hold texts, got {kind}")
    place = [file.schema.column(index).path for index in range(len(file.schema))].index(column)
    groups = (file.metadata.row_group(group) for group in range(file.num_row_groups))
    sizes = tuple(group.column(place).total_uncompressed_size for group in groups)
    return RowsInput(
        path=str(path), size=size, changed_ns=changed_ns, column=column, group_bytes=sizes
    )


def _open(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(f"{path} needs the package pyarrow: pip install 'retnet[data]'") from error
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise BadTextError(f"{path} is no parquet file, or damaged: {reason}") from error


def _columns(rows: RowsInput, group: int) -> Iterator[Any]:
    """The texts of a row group, some at a time."""
    import pyarrow as pa

    with _open(Path(rows.path)) as file:
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[rows.column])
        try:
            for batch in batches:
                yield batch.column(0)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise BadTextError(
                f"{rows.path}, row group {group} is damaged: {reason}; copy it anew"
            ) from error


def _utf8_error(rows: RowsInput, group: int, row: int, text: bytes) -> BadTextError | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return BadTextError(
            f"{rows.path}, row {row} of group {group}: not UTF-8: its byte {error.start} is "
            f"0x{text[error.start]:02x}; mend it, or pass skip_bad"
        )
    return None
