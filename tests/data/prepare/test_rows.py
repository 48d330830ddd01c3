"""Parquet files, by row groups."""

import sys
from pathlib import Path
from typing import Any

import pytest

from retnet.data.prepare.passages import BadTextError, Item, LeftOut, Passage
from retnet.data.prepare.rows import open_rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["naïve 日本語 🙂\r\n", "", "b", None, *map(str, range(50))]
EXPECTED = [LeftOut("empty") if text is None else Passage(text.encode()) for text in TEXTS]


def write(path: Path, column: Any, **options: Any) -> Path:
    pq.write_table(pa.table({"id": list(range(len(column))), "text": column}), path, **options)
    return path


def items(path: Path, size: int = 1 << 30, *, skip_bad: bool = False) -> list[Item]:
    given = open_rows(path, path.stat().st_size, path.stat().st_mtime_ns, "text")
    return [
        item
        for piece in given.pieces(size)
        for item in piece.items(lambda _: None, skip_bad=skip_bad)
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("size", [1, 100, 1 << 30])
def test_all_rows(tmp_path: Path, kind: Any, dictionary: bool, size: int) -> None:
    """Of all kinds of text, however the groups are put together."""
    column = pa.array(TEXTS, kind)
    column = column.dictionary_encode() if dictionary else column
    path = write(tmp_path / "a.parquet", column, row_group_size=7)
    assert items(path, size) == EXPECTED


def test_pieces_are_row_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(TEXTS), row_group_size=7)
    given = open_rows(path, 1, 0, "text")
    assert len(list(given.pieces(1))) == 8
    assert len(list(given.pieces(given.expected_bytes // 2))) in (2, 3)
    assert len(list(given.pieces(1 << 30))) == 1


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    column = pa.array([b"a", b"caf\xe9", b"b"], pa.binary()).view(pa.string())
    path = write(tmp_path / "a.parquet", column)
    with pytest.raises(BadTextError, match="row 2 of group 0: not UTF-8: its byte 3 is 0xe9"):
        items(path)
    assert items(path, skip_bad=True) == [Passage(b"a"), LeftOut("bad"), Passage(b"b")]


def test_columns_that_do_not_do(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array([1, 2]))
    with pytest.raises(BadTextError, match="column 'text' must hold texts, got int64"):
        items(path)
    with pytest.raises(BadTextError, match="no column 'content', there are 'id', 'text'; name"):
        open_rows(path, 1, 0, "content")


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("text")
    with pytest.raises(BadTextError, match=r"a\.parquet is no parquet file, or damaged"):
        items(path)


def test_damaged_groups(tmp_path: Path) -> None:
    """Found when they are read: what holds the sizes is at the end of the file."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(n) * 99 for n in range(999)]}), path)
    data = bytearray(path.read_bytes())
    data[:500] = bytes(500)
    path.write_bytes(data)
    with pytest.raises(BadTextError, match=r"a\.parquet, row group 0 is damaged: .*; copy it"):
        items(path)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", pa.array(TEXTS))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"needs the package pyarrow: pip install 'retnet\[data\]"):
        items(path)
