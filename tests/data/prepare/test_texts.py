"""Text files in ranges: however a file is divided, the documents are those of the whole."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retnet.data.prepare import passages, texts
from retnet.data.prepare.passages import BadTextError, Item, LeftOut, Passage
from retnet.data.prepare.sources import make_division
from retnet.data.prepare.texts import Division, TextInput

TITLES = make_division("^ = [^=].* = $", None)
BLANK_LINES = make_division(None, "")
SEPARATORS = make_division(None, "<|endoftext|>")
EVERY_LINE = make_division("", None)


def text_input(
    path: Path, data: bytes, division: Division | None = None, *, is_found: bool = False
) -> TextInput:
    path.write_bytes(data)
    return TextInput(
        path=str(path),
        size=len(data),
        changed_ns=path.stat().st_mtime_ns,
        division=division,
        is_found=is_found,
    )


def items(given: TextInput, size: int = 1 << 30, *, skip_bad: bool = False) -> list[Item]:
    """All that comes out of a file in pieces of about `size` bytes."""
    return [
        item
        for piece in given.pieces(size)
        for item in piece.items(lambda _: None, skip_bad=skip_bad)
    ]


def documents(items: list[Item]) -> list[bytes]:
    """Passages put together; what begins and what ends alternate."""
    found: list[bytes] = []
    is_open = False
    for item in items:
        assert isinstance(item, Passage)
        assert item.begins is not is_open
        found.append(item.text) if item.begins else found.append(found.pop() + item.text)
        is_open = not item.ends
    assert not is_open
    return found


def small_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for name in ("_BLOCK_BYTES", "_AFTER_BYTES", "_LONGEST_LINE_BYTES"):
        monkeypatch.setattr(texts, name, size)


LINES = st.sampled_from(
    ["\n", "a\n", "ä b\n", " = T = \n", " = = S = = \n", "<|endoftext|>\n", "🙂" * 9 + "\n", "end"]
)


@pytest.mark.parametrize("block", [1, 7, 20, 1000])
@pytest.mark.parametrize("division", [None, TITLES, BLANK_LINES, SEPARATORS, EVERY_LINE])
def test_ranges_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, division: Division | None, block: int
) -> None:
    """For files of all kinds of lines, in pieces of any size, read in blocks of any."""
    small_blocks(monkeypatch, block)
    path = tmp_path / "a.txt"

    @given(st.lists(LINES, min_size=1, max_size=12), st.integers(1, 60))
    def hold(lines: list[str], size: int) -> None:
        given = text_input(path, "".join(lines).encode(), division)
        whole = [each for each in documents(items(given)) if each]
        divided = [each for each in documents(items(given, size)) if each]
        assert divided == whole
        if division is None or division.keeps_line:
            assert b"".join(whole) == path.read_bytes()

    hold()


def test_a_file_is_a_document(tmp_path: Path) -> None:
    data = "naïve\r\n\n two\t".encode()
    assert items(text_input(tmp_path / "a.txt", data)) == [Passage(data)]


def test_lines_that_begin_documents(tmp_path: Path) -> None:
    text = " \n = One = \n \n = = Section = = \n text\n = Two = \n"
    found = documents(items(text_input(tmp_path / "a.txt", text.encode(), TITLES)))
    assert found == [b" \n", b" = One = \n \n = = Section = = \n text\n", b" = Two = \n"]


def test_lines_between_documents(tmp_path: Path) -> None:
    text = "<|endoftext|>\none\r\n<|endoftext|>\r\nsay <|endoftext|>\n<|endoftext|>"
    found = documents(items(text_input(tmp_path / "a.txt", text.encode(), SEPARATORS)))
    assert found == [b"one\r\n", b"say <|endoftext|>\n"]


def test_empty_lines_between_documents(tmp_path: Path) -> None:
    found = items(text_input(tmp_path / "a.txt", b"\none\n\n\ntwo\n two\n\n", BLANK_LINES))
    assert documents(found) == [b"one\n", b"two\n two\n"]


def test_every_line_is_a_document(tmp_path: Path) -> None:
    found = items(text_input(tmp_path / "a.txt", "ä\n\nb".encode(), EVERY_LINE))
    assert documents(found) == ["ä\n".encode(), b"\n", b"b"]


@pytest.mark.parametrize("division", [None, TITLES])
def test_long_documents_come_in_passages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, division: Division | None
) -> None:
    """So that memory stays bounded; they are cut at the ends of lines."""
    small_blocks(monkeypatch, 50)
    monkeypatch.setattr(passages, "LONGEST_WHOLE_BYTES", 200)
    text = (" = T = \n" + "a line\n" * 100).encode()
    found = items(text_input(tmp_path / "a.txt", text, division))
    assert documents(found) == [text]
    assert len(found) >= 4
    for item in found:
        assert isinstance(item, Passage)
        assert len(item.text) <= 300
        assert item.text.endswith(b"\n")


@pytest.mark.parametrize("division", [None, TITLES])
@pytest.mark.parametrize("size", [8, 1000])
def test_bytes_that_are_not_utf8_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, division: Division | None, size: int
) -> None:
    small_blocks(monkeypatch, 16)
    data = ("ä = \n" * 20).encode() + b"caf\xe9 au lait\n"
    given = text_input(tmp_path / "a.txt", data, division)
    with pytest.raises(BadTextError, match=r"a\.txt' is not UTF-8: byte 123 is 0xe9; convert it"):
        items(given, size)


@pytest.mark.parametrize("tail", [b"\xf0\x9f\x99", b"\xc3", b"\x80"])
def test_a_character_that_does_not_end(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(BadTextError, match=f"byte 6 is 0x{tail[0]:02x}"):
        items(text_input(tmp_path / "a.txt", b"a line" + tail))


def test_bad_documents_are_skipped_alone(tmp_path: Path) -> None:
    data = b" = One = \n caf\xe9\n = Two = \n good\n = Three = \n \xff"
    found = items(text_input(tmp_path / "a.txt", data, TITLES), skip_bad=True)
    assert found == [LeftOut("bad"), Passage(b" = Two = \n good\n"), LeftOut("bad")]
    assert items(text_input(tmp_path / "a.txt", data), skip_bad=True) == [LeftOut("bad")]


def test_a_part_of_a_document_is_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is out already can't be taken back."""
    small_blocks(monkeypatch, 50)
    monkeypatch.setattr(passages, "LONGEST_WHOLE_BYTES", 100)
    given = text_input(tmp_path / "a.txt", b"a line\n" * 100 + b"\xff")
    with pytest.raises(BadTextError, match="byte 700 is 0xff"):
        items(given, skip_bad=True)


@pytest.mark.parametrize(("is_found", "expected"), [(True, [LeftOut("binary")]), (False, None)])
def test_binary_files_of_folders_are_left_out(
    tmp_path: Path, is_found: bool, expected: Any
) -> None:
    given = text_input(tmp_path / "a.txt", b"text\0text", is_found=is_found)
    assert items(given) == (expected or [Passage(b"text\0text")])


def test_what_was_read_is_reported(tmp_path: Path) -> None:
    given = text_input(tmp_path / "a.txt", b"a line\n" * 100)
    read: list[int] = []
    for piece in given.pieces(100):
        list(piece.items(read.append, skip_bad=False))
    assert sum(read) >= given.size  # some is read ahead
    assert sum(piece.num_bytes for piece in given.pieces(100)) == given.size
