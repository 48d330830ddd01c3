"""JSON lines: in ranges as in the whole, and what is wrong with a line said with its number."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retnet.data.prepare import lines
from retnet.data.prepare.lines import LinesInput, holds_lines
from retnet.data.prepare.passages import BadTextError, Item, LeftOut, Passage


def items(path: Path, size: int = 1 << 30, *, skip_bad: bool = False) -> list[Item]:
    """All that comes out of a file in pieces of about `size` bytes."""
    status = path.stat()
    given = LinesInput(
        path=str(path), size=status.st_size, changed_ns=status.st_mtime_ns, field="text"
    )
    return [
        item
        for piece in given.pieces(size)
        for item in piece.items(lambda _: None, skip_bad=skip_bad)
    ]


def test_ranges_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 16)
    path = tmp_path / "a.jsonl"

    @given(st.lists(st.text(max_size=20), min_size=1), st.integers(1, 200), st.booleans())
    def hold(texts: list[str], size: int, ends: bool) -> None:
        rows = "\n".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) for text in texts)
        path.write_text(rows + ("\n" if ends else ""), newline="\n")
        assert items(path, size) == [Passage(text.encode()) for text in texts]

    hold()


def test_blank_lines_nulls_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": null}\n  \n{"text": "b"}')
    assert items(path) == [Passage(b"a"), LeftOut("empty"), Passage(b"b")]


BAD = [
    (b'{"other": 1, "title": 2}', r"there is no field 'text', there are 'other', 'title'; name"),
    (b"{}", "there is no field 'text', there are none"),
    (b'{"text": 5}', "'text' must be a text, got '5'"),
    (b'{"text": ["a"]}', r"'text' must be a text, got \"\['a'\]\""),
    (b'{"text": "a"', r"not a JSON object \(.*\): '\{\"text\": \"a\"'; mend it, or pass skip_bad"),
    (b'"text"', "not a JSON object: '\"text\"'"),
    (b'[{"text": "a"}]', r"it is an array: .*; each line must be an object .* `jq -c '\.\[\]' FI"),
    (b'{"text": "caf\xe9"}', "not UTF-8: its byte 13 is 0xe9; convert the file"),
    (b'{"text": "a\\ud83d"}', "'text' has half of a surrogate pair at character 1; mend it"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
@pytest.mark.parametrize("size", [1 << 30, 40])
def test_bad_lines_are_named(tmp_path: Path, line: bytes, message: str, size: int) -> None:
    """With their number in the file, whatever piece they are in."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' * 10 + line + b"\n" + b'{"text": "b"}\n')
    with pytest.raises(BadTextError, match=rf"a\.jsonl, line 21: {message}"):
        items(path, size)
    found = items(path, size, skip_bad=True)
    assert found == [*[Passage(b"a")] * 10, LeftOut("bad"), Passage(b"b")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', True),
        ('{"text": "a", "n": 1}', True),
        ('{\n "text": "a"\n}\n', False),
        ('{"other": "a"}\n', False),
        ('[{"text": "a"}]\n', False),
        ("", False),
    ],
)
def test_which_json_files_are_lines(tmp_path: Path, text: str, expected: bool) -> None:
    """In a folder: settings of programs are no records, and stay text."""
    path = tmp_path / "a.json"
    path.write_text(text)
    assert holds_lines(path, "text") is expected
