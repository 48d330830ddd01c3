"""Compressed files: read as what they hold, and never taken for whole when they are cut short."""

import bz2
import gzip
import lzma
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retnet.data.prepare.opening import inner_suffix, is_compressed, open_input
from retnet.data.prepare.passages import BadTextError


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    compressed: bytes = zstandard.ZstdCompressor().compress(data)
    return compressed


Compress = Callable[[bytes], bytes]
COMPRESSIONS: dict[str, Compress] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
TEXT = "".join(f"{random.Random(number).random()} äöü\n" for number in range(20_000)).encode()


def read(path: Path, advance: Callable[[int], object] = lambda _: None) -> bytes:
    with open_input(path, advance) as file:
        return file.read()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    """Also of several one after the other in a file, as `cat` and parallel compressors make."""
    compress, path = COMPRESSIONS[suffix], tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(TEXT) + compress(b"") + compress(TEXT[:99]))
    sizes: list[int] = []
    assert read(path, sizes.append) == TEXT + TEXT[:99]
    assert sum(sizes) == path.stat().st_size


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](TEXT))
    with open_input(path, lambda _: None) as file:
        assert list(file) == TEXT.splitlines(keepends=True)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("cut", [0.001, 0.5, 0.999])
def test_cut_short(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"a.txt{suffix}"
    data = COMPRESSIONS[suffix](TEXT)
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(BadTextError, match=rf"a\.txt\{suffix} is damaged or cut short"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_something_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"no compressed file at all")
    with pytest.raises(BadTextError, match=r"is damaged or cut short: .*; copy it anew"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    if suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        data = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    else:
        data = COMPRESSIONS[suffix](TEXT)
    place = len(data) // 2
    path.write_bytes(
        data[:place] + bytes(byte ^ 255 for byte in data[place:][:9]) + data[place + 9 :]
    )
    with pytest.raises(BadTextError, match="is damaged or cut short"):
        read(path)


def test_windows_of_gigabytes(tmp_path: Path) -> None:
    """Large published texts are compressed with `zstd --long=31`."""
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    path = tmp_path / "a.zst"
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path.write_bytes(compressor.compress(TEXT) + compressor.flush())
    assert read(path) == TEXT


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").write_bytes(b"")
    with pytest.raises(ValueError, match=r"needs the package zstandard: pip install 'retnet\[data"):
        read(tmp_path / "a.zst")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.gz"):
        read(tmp_path / "nothing.gz")


def test_names() -> None:
    assert inner_suffix(Path("a/b.JSONL.Gz")) == ".jsonl"
    assert inner_suffix(Path("a/b.txt")) == ".txt"
    assert inner_suffix(Path("a/b.gz")) == ""
    assert is_compressed(Path("b.ZST"))
    assert not is_compressed(Path("gz"))
