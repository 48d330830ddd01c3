"""Prepared folders: what is read is what was written, and what was not written so is refused."""

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retnet.data.prepare.writer import ShardWriter
from retnet.data.shards import (
    DataError,
    Header,
    Shard,
    TokenShards,
    is_prepared,
    read_header,
    verify,
)

SIZES = [5, 1, 7, 3]


def write_shards(
    directory: Path, sizes: list[int], split: str = "train", dtype: str = "uint16"
) -> tuple[Shard, ...]:
    """Shards of the numbers from 0 on; each is a document of as many bytes of text."""
    shards = []
    start = 0
    for row, size in enumerate(sizes):
        with ShardWriter(directory, f"{split}-{row:05}", dtype) as writer:
            ids = np.arange(start, start + size)
            writer.write(ids, np.zeros(1, np.int64), np.array([size - 1]))
            shard = writer.finish()
        assert shard is not None
        shards.append(shard)
        start += size
    return tuple(shards)


def write_folder(directory: Path, **changes: Any) -> Header:
    values: dict[str, Any] = {
        "dtype": "uint16",
        "vocab_size": 300,
        "bos_id": 1,
        "eos_id": 2,
        "tokenizer": "bytes",
        "train": write_shards(directory, SIZES),
        "validation": write_shards(directory, [4], "validation"),
        "source": {"settings": {}},
    }
    header = Header(**values | changes)
    (directory / "data.json").write_text(header.to_json())
    return header


def test_header_survives(tmp_path: Path) -> None:
    assert not is_prepared(tmp_path)
    header = write_folder(tmp_path)
    assert is_prepared(tmp_path)
    assert read_header(tmp_path) == header
    assert read_header(tmp_path).fingerprint == header.fingerprint


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_reading_across_shards(tmp_path: Path, dtype: str) -> None:
    """Any range, whatever shards it lies in."""
    shards = TokenShards(tmp_path, write_shards(tmp_path, SIZES, dtype=dtype), dtype)
    assert len(shards) == sum(SIZES)
    for start in range(len(shards) + 1):
        for stop in range(start, len(shards) + 1):
            ids = shards.read(start, stop)
            assert ids.dtype == dtype
            assert ids.tolist() == list(range(start, stop))


@pytest.mark.parametrize("place", [(-1, 2), (3, 2), (0, 17)])
def test_ranges_outside_are_refused(tmp_path: Path, place: tuple[int, int]) -> None:
    shards = TokenShards(tmp_path, write_shards(tmp_path, SIZES), "uint16")
    with pytest.raises(ValueError, match="were asked for, there are 16"):
        shards.read(*place)


def test_documents(tmp_path: Path) -> None:
    shards = TokenShards(tmp_path, write_shards(tmp_path, SIZES), "uint16")
    assert shards.documents().tolist() == [[0, 4], [5, 0], [6, 6], [13, 2]]


def test_more_shards_than_a_process_may_open(tmp_path: Path) -> None:
    """Terabytes are thousands of shards, and systems allow a process 1024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shards = TokenShards(tmp_path, write_shards(tmp_path, [2] * 400), "uint16")
    resource.setrlimit(resource.RLIMIT_NOFILE, (350, hard))
    try:
        assert [int(shards.read(2 * row, 2 * row + 1)[0]) for row in range(400)]
        assert shards.read(0, 800).tolist() == list(range(800))
        assert shards.documents().shape == (400, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train-00000", "uint16") as writer:
        writer.write(np.arange(3), np.zeros(1, np.int64), np.array([2]))
    assert not list(tmp_path.iterdir())


def test_a_document_goes_on_in_the_next_write(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "a", "uint16") as writer:
        writer.write(np.arange(3), np.array([1]), np.array([5, 1]))
        writer.write(np.arange(3), np.array([2]), np.array([10, 0]))
        shard = writer.finish()
    assert shard is not None
    assert (shard.num_tokens, shard.num_documents, shard.num_bytes) == (6, 2, 16)
    assert TokenShards(tmp_path, [shard], "uint16").documents().tolist() == [[1, 11], [5, 0]]


def test_verify(tmp_path: Path) -> None:
    write_folder(tmp_path)
    read: list[int] = []
    verify(tmp_path, read.append)
    assert sum(read) == sum(path.stat().st_size for path in tmp_path.glob("*-*"))


@pytest.mark.parametrize("name", ["train-00002.bin", "validation-00000.npy"])
def test_one_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    read_header(tmp_path)
    with pytest.raises(DataError, match=f"not as they were written: {name}; prepare again"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("train-00002.bin", 13, r"train-00002.bin is cut short: 13 bytes, expected 14; copy it"),
        ("train-00002.bin", 15, r"train-00002.bin is too long: 15 bytes, expected 14"),
        ("train-00000.npy", 136, r"train-00000.npy is damaged: .*; prepare again"),
        ("train-00000.npy", 0, r"train-00000.npy is damaged"),
        ("train-00001.bin", None, r"there is no .*train-00001.bin, which data.json lists"),
        ("train-00001.npy", None, r"there is no .*train-00001.npy"),
    ],
)
def test_a_shard_of_another_size_is_named(
    tmp_path: Path, name: str, size: int | None, message: str
) -> None:
    header = write_folder(tmp_path)
    path = tmp_path / name
    data = path.read_bytes() + b"\0"
    path.unlink()
    if size is not None:
        path.write_bytes(data[:size])
    with pytest.raises(DataError, match=message):
        TokenShards(tmp_path, header.train, header.dtype)
    with pytest.raises(DataError, match=message):
        verify(tmp_path)


def test_another_array_in_the_place_of_documents(tmp_path: Path) -> None:
    """Also one that would run code when it is unpickled."""
    header = write_folder(tmp_path)
    np.save(tmp_path / "train-00001.npy", np.zeros((1, 3)))
    with pytest.raises(DataError, match=r"holds float64 of shape \[1, 3\], expected uint64"):
        TokenShards(tmp_path, header.train, header.dtype)
    np.save(tmp_path / "train-00001.npy", np.array([[{}, {}]]), allow_pickle=True)
    with pytest.raises(DataError, match=r"train-00001.npy is damaged: .*Python objects"):
        TokenShards(tmp_path, header.train, header.dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(format="other"), "is no header of prepared tokens"),
        (lambda fields: fields.update(version=2), "is of version 2, this program reads 1"),
        (lambda fields: fields.pop("bos_id"), "is damaged: 'bos_id'; prepare again"),
        (lambda fields: fields.update(dtype="int8"), "dtype 'int8', expected one of uint16"),
        (lambda fields: fields.update(vocab_size="many"), "vocab_size is 'many', expected a num"),
        (lambda fields: fields.update(train=3), "is damaged"),
        (lambda fields: fields["train"][0].pop("sha256"), "is damaged: .*sha256"),
        (lambda fields: fields["train"][0].update(num_tokens=-1), "num_tokens is -1"),
        (lambda fields: fields["train"][0].update(name="../a"), r"a shard is called '\.\./a'"),
    ],
)
def test_headers_that_do_not_do(tmp_path: Path, change: Any, message: str) -> None:
    write_folder(tmp_path)
    fields = json.loads((tmp_path / "data.json").read_text())
    change(fields)
    (tmp_path / "data.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=message):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no prepared tokens: there is no data.json in it; make them with"),
        ("{", "data.json can't be read as JSON"),
        ("[]", "is no header of prepared tokens; it is another program's file"),
    ],
)
def test_files_that_are_no_header(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "data.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_header(tmp_path)
