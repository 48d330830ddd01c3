"""Data sets by name, their checksums, and the passages that are scored."""

import json
from pathlib import Path

import pytest

from retnet.data.prepare.documents import read_documents
from retnet.data.shards import is_prepared, read_header
from retnet.data.text import Document
from retnet.data.tokens import load_tokens
from retnet.reproduce.texts import (
    KNOWN,
    TrainingText,
    describe_set,
    find_source,
    passages,
    prepare_text,
    read_set,
    scored_passages,
)

ARTICLES = " = One = \n first words , and some more \n = = Part = = \n b \n = Two = \n second \n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "wikitext-2").mkdir(parents=True)
    (folder / "wikitext-2/wiki.train.tokens").write_text(ARTICLES * 40)
    (folder / "wikitext-2/wiki.valid.tokens").write_text(ARTICLES.replace("first", "other") * 20)
    (folder / "qmsum").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("a meeting", "another"))
    (folder / "qmsum/val.jsonl").write_text(lines)
    return folder


@pytest.mark.parametrize("name", [*KNOWN, "pg22"])
def test_a_set_that_is_not_there(name: str, tmp_path: Path) -> None:
    """The error tells its name, its path, and how to get it."""
    with pytest.raises(ValueError, match=f"data set '{name}' is not at '{tmp_path}/.*put it there"):
        find_source(name, tmp_path)


def test_documents(data: Path) -> None:
    """WikiText is divided into its articles, JSON lines into their texts."""
    assert [each.data for each in read_set("qmsum", data)] == [b"a meeting", b"another"]
    articles = list(read_set("wikitext-2", data))
    assert len(articles) == 80
    assert articles[1].data.decode() == " = Two = \n second \n"


def test_a_library_is_always_there(tmp_path: Path) -> None:
    assert len(list(read_set("stdlib-json", tmp_path))) > 3


def test_read_documents_of_a_long_file(tmp_path: Path) -> None:
    """What comes in passages is put together again."""
    text = "".join(f"line {number}\n" for number in range(2_000_000))
    (tmp_path / "long.txt").write_text(text)
    (document,) = read_documents(str(tmp_path / "long.txt"))
    assert document == Document("long.txt#0", text.encode())


def test_checksums(data: Path) -> None:
    """They follow the text, not the file it is in."""
    before = describe_set("qmsum", data)
    (data / "qmsum/val.jsonl").rename(data / "qmsum/other.jsonl")
    describe_set.cache_clear()
    assert describe_set("qmsum", data) == before
    (data / "qmsum/other.jsonl").write_text(json.dumps({"text": "a meetinganother"}) + "\n")
    describe_set.cache_clear()
    assert describe_set("qmsum", data).sha256 != before.sha256


def test_prepared(data: Path, tmp_path: Path) -> None:
    """Ready for training, with the passages held out; a set that comes prepared stays."""
    text = TrainingText("wikitext-2", "wikitext-2-validation", 480)
    folder = prepare_text(text, data, tmp_path / "texts")
    tokens = load_tokens(str(folder))
    assert tokens.train_bytes == len(ARTICLES.encode()) * 40
    held_out = passages(read_set("wikitext-2-validation", data), num_bytes=480, length=20)
    decode = tokens.tokenizer.decode_bytes
    found = [decode(each.ids.tolist()) for each in tokens.validation]
    assert found == [each.data for each in held_out]
    assert prepare_text(text, data, tmp_path / "texts") == folder
    (data / "train").symlink_to(folder)
    assert is_prepared(str(data / "train"))
    prepared = TrainingText("train", "wikitext-2-validation", 480)
    assert prepare_text(prepared, data, tmp_path / "others") == data / "train"
    assert describe_set("train", data).sha256 == read_header(str(folder)).fingerprint
    with pytest.raises(ValueError, match=r"data set 'train' at .* has tokens, and it is scored by"):
        scored_passages("train", data, num_bytes=10, length=5)


def test_passages_lie_evenly() -> None:
    documents = [
        Document("a", bytes(range(100)) * 2),
        Document("b", b"x" * 5),
        Document("c", b"y" * 60),
    ]
    found = passages(documents, num_bytes=80, length=20)
    assert [len(each.data) for each in found] == [20] * 4
    assert [each.name.partition("@")[0] for each in found] == ["a", "a", "a", "c"]
    assert found == passages(documents, num_bytes=80, length=20)


def test_passages_are_characters() -> None:
    found = passages([Document("a", "ü".encode() * 50)], num_bytes=30, length=7)
    assert all(each.data.decode().strip("ü") == "" for each in found)


def test_nothing_is_long_enough() -> None:
    with pytest.raises(ValueError, match="no document is as long as a passage of 20 bytes"):
        passages([Document("a", b"x")], num_bytes=80, length=20)


def test_a_set_that_is_too_short_is_named(data: Path) -> None:
    with pytest.raises(ValueError, match="data set 'qmsum': no document is as long as a passage"):
        scored_passages("qmsum", data, num_bytes=80, length=20)


def test_scored_passages(data: Path) -> None:
    found = scored_passages("wikitext-2", data, num_bytes=200, length=30)
    assert [len(each.ids) for each in found] == [30] * 6
