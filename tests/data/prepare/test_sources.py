"""What is found where: files of all kinds, and what a folder has besides."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from retnet.data.prepare.lines import LinesInput
from retnet.data.prepare.sources import Finder, make_division
from retnet.data.prepare.texts import TextInput
from retnet.data.text import find_documents
from tests.data.prepare.conftest import Prepare, train_of, validation_of

ROW = json.dumps({"text": "a row"}) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(*sources: str, out: str = "out") -> list[str]:
    """The paths of what is found, with L for JSON lines and T for text."""
    finder = Finder(text_field="text", split="train", division=None, leave_out=Path(out))
    kinds = {LinesInput: "L", TextInput: "T"}
    return [f"{kinds[type(each)]} {each.identity()[0]}" for each in finder.find(sources)]


def write(files: dict[str, str | bytes]) -> None:
    for name, data in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data.encode() if isinstance(data, str) else data)


def test_kinds_by_name(here: Path) -> None:
    write(dict.fromkeys(["a.txt", "b.md", "c"], "text"))
    write(dict.fromkeys(["d.jsonl", "e.ndjson", "f.json", "g.JSONL", "h.jsonl.gz"], ROW))
    write({"i.txt.gz": "text"})
    names = sorted(path.name for path in here.iterdir())
    assert find(*names) == [f"{'L' if name[0] in 'defgh' else 'T'} {name}" for name in names]


def test_a_folder(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sorted and recursive, without hidden and empty files and copies, which are counted."""
    write(
        {
            "in/b.txt": "one",
            "in/a/deep/c.txt": "two",
            "in/copy.txt": "one",
            "in/same size.txt": "owe",
            "in/rows.jsonl": ROW,
            "in/rows copy.jsonl": ROW,
            "in/empty.txt": "",
            "in/.hidden": "three",
            "in/.git/config": "four",
            "in/config.json": '{"name": "x"}',
            "in/rows.json": ROW,
        }
    )
    with caplog.at_level(logging.INFO, logger="retnet"):
        found = find("in")
    assert found == [
        "T in/b.txt",
        "T in/config.json",
        "L in/rows copy.jsonl",
        "L in/rows.json",
        "L in/rows.jsonl",
        "T in/same size.txt",
        "T in/a/deep/c.txt",
    ]
    assert "in: left out 2 empty files and copies" in caplog.text
    assert "in: left out 2 hidden files and folders" in caplog.text


def test_binary_files_are_left_out_when_they_are_read(prepare_here: Prepare) -> None:
    """Compressed ones too: what looks like text is not, decompressed."""
    texts = {f"in/{number}.txt": f"text {number}" for number in range(30)}
    write({**texts, "in/a.bin": b"\x89PNG\0", "in/b.gz": gzip.compress(b"tar\0tar")})
    write({"in/c.txt.gz": gzip.compress(b"text c")})
    done = prepare_here("in")
    expected = sorted([text.encode() for text in texts.values()] + [b"text c"])
    assert sorted(train_of() + validation_of()) == expected
    assert done.header.source["left_out"] == {"binary": 2}


def test_the_folder_that_is_written_to_is_not_read(prepare_here: Prepare) -> None:
    """`retnet prepare .`, interrupted or not, finds no shards of its own."""
    write({f"{number}.txt": f"text {number}" for number in range(30)})
    Path("out/unfinished").mkdir(parents=True)
    Path("out/unfinished/part").write_text("text")
    prepare_here(".")
    assert len(train_of() + validation_of()) == 30


def test_the_standard_library(prepare_here: Prepare) -> None:
    """The same documents as where training reads it."""
    prepare_here("stdlib")
    expected = sorted(document.data for document in find_documents("stdlib"))
    assert sorted(train_of() + validation_of()) == expected


def test_several_sources(here: Path) -> None:
    write({"a.txt": "one", "in/b.txt": "two"})
    assert find("in", "a.txt") == ["T in/b.txt", "T a.txt"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", r"'nothing' is not there; pass a file, a folder, \"stdlib\", or \"hf:NAME\""),
        ("empty.txt", r"'empty.txt' is empty \(0 bytes\)"),
        ("a.tar.gz", r"'a.tar.gz' is an archive; unpack it and pass the folder"),
        ("a.zip", r"'a.zip' is an archive"),
        ("a.tgz", r"'a.tgz' is an archive"),
        ("bare", r"'bare' holds no files with text; pass a folder that does"),
    ],
)
def test_what_cannot_be_read_is_refused(here: Path, source: str, message: str) -> None:
    write({"empty.txt": "", "a.tar.gz": "a", "a.zip": "a", "a.tgz": "a", "bare/.hidden": "a"})
    with pytest.raises(ValueError, match=message):
        find(source)


def test_divisions() -> None:
    assert make_division(None, None) is None
    begins = make_division("^= ", None)
    assert begins is not None
    assert list(begins.places("a\n= b\nc\n", at_line_start=True)) == [(2, 2)]
    between = make_division(None, "+++")
    assert between is not None
    assert list(between.places("a\n+++\r\n++++\n+++", at_line_start=True)) == [(2, 7), (12, 15)]
