import logging
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from retnet.data.text import (
    STDLIB,
    Document,
    find_documents,
    hold_out,
    load_corpus,
    num_bytes,
)


@pytest.fixture(scope="module")
def stdlib() -> tuple[Document, ...]:
    return find_documents(STDLIB)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("naïve\r\n".encode())
    assert find_documents(tmp_path / "a.txt") == (Document("a.txt", "naïve\r\n".encode()),)


def test_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sorted and recursive; hidden, binary, empty and repeated files are left out and counted."""
    for name, data in {
        "b.txt": b"second",
        "a/deep/c.md": b"first",
        "copy.txt": b"second",
        "empty.txt": b" \n",
        ".hidden": b"secret",
        ".git/config": b"secret",
        "image.bin": b"\x89PNG\0\0",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with caplog.at_level(logging.INFO, logger="retnet"):
        documents = find_documents(tmp_path)
    assert documents == (Document("b.txt", b"second"), Document("a/deep/c.md", b"first"))
    log = caplog.text
    assert "left out 1 binary files" in log
    assert "left out 2 empty files and copies" in log
    assert "left out 2 hidden" in log


def test_the_standard_library(stdlib: tuple[Document, ...]) -> None:
    names = {document.name for document in stdlib}
    assert {"os.py", "json/decoder.py", "asyncio/events.py"} <= names
    assert not any("site-packages" in name or "_sysconfigdata" in name for name in names)
    assert all(name.endswith(".py") for name in names)
    assert num_bytes(stdlib) > 5e6
    for document in stdlib:
        document.data.decode()


def test_the_standard_library_without_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distributions package Lib/test apart; the rest is still found."""
    real = Path(sysconfig.get_path("stdlib"))
    for name in ("os.py", "json/decoder.py", "json/encoder.py", "string.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((real / name).read_bytes())
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "x.py").write_text("import os")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    names = [document.name for document in find_documents(STDLIB)]
    assert sorted(names) == ["json/decoder.py", "json/encoder.py", "os.py", "string.py"]


def test_whole_files_are_held_out(stdlib: tuple[Document, ...]) -> None:
    corpus = hold_out(stdlib)
    share = num_bytes(corpus.validation) / num_bytes(stdlib)
    assert 0.02 < share <= 0.03
    assert num_bytes(corpus.validation) <= 1_000_000
    assert len(corpus.validation) > 10
    names = {document.name for document in corpus.validation}
    assert not names & {document.name for document in corpus.train}
    assert {*corpus.train, *corpus.validation} == set(stdlib)
    train_texts = {document.data for document in corpus.train}
    assert not any(document.data in train_texts for document in corpus.validation)


def test_the_split_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Python's own hash of a string changes from process to process."""
    for index in range(200):
        (tmp_path / f"{index}.txt").write_text(f"text {index} " * 20)
    program = (
        "import sys; from retnet.data.text import load_corpus\n"
        "sys.stdout.write(' '.join(d.name for d in load_corpus(sys.argv[1]).validation))"
    )
    splits = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    expected = " ".join(document.name for document in load_corpus(tmp_path).validation)
    assert splits == {expected}
    assert len(expected.split()) >= 3


def test_a_single_file_loses_its_end(tmp_path: Path) -> None:
    """The cut is never inside a character."""
    text = "ä" * 1005
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(tmp_path / "a.txt")
    (train,), (validation,) = corpus.train, corpus.validation
    assert (train.data + validation.data).decode() == text
    assert train.data.decode() + validation.data.decode() == text
    assert 200 <= len(validation.data) <= 202


def test_a_long_file_loses_at_most_a_megabyte() -> None:
    corpus = hold_out([Document("a", b"x" * 30_000_000)])
    assert num_bytes(corpus.validation) == 1_000_000


def test_few_long_files_lose_the_end_of_the_longest() -> None:
    documents = [Document("a", b"a" * 1000), Document("b", b"b" * 2000)]
    corpus = hold_out(documents)
    assert corpus.validation == (Document("b", b"b" * 200),)
    assert corpus.train == (documents[0], Document("b", b"b" * 1800))


@pytest.mark.parametrize("content", [b"", b" \n\t"])
def test_empty_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.txt' is empty"):
        find_documents(tmp_path / "a.txt")


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.bin").write_bytes(b"\0\1")
    with pytest.raises(ValueError, match="holds no text files"):
        find_documents(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing' is not there; pass a text file"):
        find_documents(tmp_path / "nothing")


@pytest.mark.parametrize("as_folder", [False, True])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, as_folder: bool) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("caf\xe9 au lait".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt' is not UTF-8: byte 3 is 0xe9"):
        find_documents(tmp_path if as_folder else path)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="too little text to hold any out: 5 bytes"):
        hold_out([Document("a", b"hello")])


def _as_nobody() -> None:
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others on Windows")
@pytest.mark.parametrize("unreadable", ["folder", "folder/a.txt"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, unreadable: str) -> None:
    """In a process of its own, because root reads everything."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("some text")
    for parent in (*tmp_path.parents, tmp_path, tmp_path / "folder"):
        if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
            parent.chmod(0o755)
    (tmp_path / unreadable).chmod(0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _report_refusal(tmp_path / "folder", write)
    os.close(write)
    with os.fdopen(read) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    (tmp_path / unreadable).chmod(0o755)
    assert message.startswith("ValueError: cannot read data f")
    assert "Permission denied" in message


def _report_refusal(folder: Path, write: int) -> None:
    try:
        _as_nobody()
        find_documents(folder)
        os.write(write, b"nothing refused")
    except Exception as error:
        os.write(write, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)
