"""Data sets through the package `datasets`: from folders, which it reads as it does the hub's."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from retnet.data.prepare.hub import _name_and_config, open_hub
from retnet.data.prepare.passages import BadTextError, Item, LeftOut, Passage
from tests.data.prepare.conftest import Prepare, contents, train_of, validation_of

datasets: Any = pytest.importorskip("datasets")

TEXTS = [f"naïve 日本語 {number}\r\n" for number in range(30)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_folder(folder: Path, texts: list[Any] = TEXTS, name: str = "train") -> str:
    """A data set of three files."""
    folder.mkdir(exist_ok=True)
    for part in range(3):
        rows = (json.dumps({"text": text, "n": 1}) + "\n" for text in texts[part::3])
        (folder / f"{name}-{part}.jsonl").write_text("".join(rows))
    return f"hf:{folder}"


def items(source: str, *, split: str = "train", skip_bad: bool = False) -> list[Item]:
    given = open_hub(source, split, "text")
    return [
        item
        for piece in given.pieces(1 << 30)
        for item in piece.items(lambda _: None, skip_bad=skip_bad)
    ]


def test_a_piece_for_each_file(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set")
    given = open_hub(source, "train", "text")
    assert len(list(given.pieces(1))) == 3
    expected = [text for part in range(3) for text in TEXTS[part::3]]
    assert items(source) == [Passage(text.encode()) for text in expected]


def test_prepared(prepare_here: Prepare, tmp_path: Path) -> None:
    """With another split held out."""
    source = write_folder(tmp_path / "set")
    write_folder(tmp_path / "set", TEXTS[:3], name="validation")
    prepare_here(source, validation=source, shard_bytes=99)
    assert validation_of() == [text.encode() for text in TEXTS[:3]]
    assert sorted(train_of()) == sorted(text.encode() for text in TEXTS[3:])


@pytest.mark.slow
def test_workers_do_not_matter(prepare_here: Prepare, tmp_path: Path) -> None:
    """Each loads the data set for itself, which takes it seconds."""
    source = write_folder(tmp_path / "set")
    for workers in (1, 2):
        prepare_here(source, workers=workers, out=str(workers))
    assert contents("1") == contents("2")


def test_parquet_files(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "set" / "train-0.parquet")
    assert items(f"hf:{tmp_path / 'set'}") == [Passage(text.encode()) for text in TEXTS]


def test_rows_without_text(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", ["a", None, "b"])
    assert items(source) == [Passage(b"a"), LeftOut("empty"), Passage(b"b")]


def test_rows_of_other_kinds(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", [1, 2, 3, 4])
    with pytest.raises(BadTextError, match=r"split train, file 0, row 1: 'text' must be a text"):
        items(source)
    assert items(source, skip_bad=True) == [LeftOut("bad")] * 4


def test_fields_and_splits_that_are_not_there(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set")
    with pytest.raises(BadTextError, match="no field 'content', there are 'text', 'n'; name one"):
        open_hub(source, "train", "content")
    with pytest.raises(ValueError, match=r"Available splits: \['train'\]; name one with split"):
        open_hub(source, "test", "text")


def test_data_sets_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("Couldn't reach\n the hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(ValueError, match="hf:some/name can't be opened: Couldn't reach the hub"):
        open_hub("hf:some/name", "train", "text")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets: pip install 'retnet\[data"):
        open_hub("hf:some/name", "train", "text")


def test_what_is_different_once_it_changed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set")
    before = open_hub(source, "train", "text").identity()
    assert open_hub(source, "train", "text").identity() == before
    (tmp_path / "set" / "train-0.jsonl").write_text('{"text": "other"}\n')
    assert open_hub(source, "train", "text").identity() != before


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for place, expected in {
        "name": ("name", None),
        "owner/name": ("owner/name", None),
        "owner/name/config": ("owner/name", "config"),
        "set": ("set", None),
        "set/config": ("set", "config"),
        f"{tmp_path}/set": (f"{tmp_path}/set", None),
        f"{tmp_path}/set/config": (f"{tmp_path}/set", "config"),
    }.items():
        assert _name_and_config(place) == expected
    for place in ("a/b/c/d", "", "/nowhere/b", "a//b"):
        with pytest.raises(ValueError, match="must be hf:OWNER/NAME or hf:OWNER/NAME/CONFIG"):
            _name_and_config(place)
