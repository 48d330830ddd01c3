"""Files as streams of bytes, whatever they are compressed with."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from retnet.data.prepare.passages import Advance, BadTextError

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".tar", ".tgz", ".zip", ".7z", ".rar")

_BUFFER_BYTES = 1 << 20
# Some published texts were compressed with `zstd --long=31`.
_LARGEST_WINDOW = 1 << 31
_FRAME_BYTES = 1 << 17


def inner_suffix(path: Path) -> str:
    """What a file's name ends with, in small letters, the compression left out: ".jsonl"."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return name.suffix.lower()


def is_compressed(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.suffix.lower() in COMPRESSIONS


@contextmanager
def open_input(path: Path, advance: Advance, *, start: int = 0) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed where its name says so.

    advance: called with the number of bytes read from the disk, again and again. start: where to
    begin in a file that is not compressed. Raises BadTextError where the file is damaged.
    """
    try:
        with path.open("rb", buffering=0) as raw:
            raw.seek(start)
            counted = _buffered(_Counted(raw, advance))
            yield _decompressed(path, counted)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:
                error.filename = str(path)
            raise
        raise BadTextError(f"{path} is damaged or cut short: {error}; copy it anew") from error


class _Counted(io.RawIOBase):
    """A raw file that tells how much of it was read."""

    def __init__(self, raw: io.RawIOBase | Any, advance: Advance) -> None:
        self._raw, self._advance = raw, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size: int = self._raw.readinto(buffer)
        self._advance(size)
        return size


def _decompressed(path: Path, file: IO[bytes]) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return _buffered(gzip.open(file))
        case ".bz2":
            return _buffered(bz2.open(file))
        case ".xz":
            return _buffered(lzma.open(file))
        case ".zst":
            return _buffered(_Zstandard(path, file))
    return file


def _buffered(file: Any) -> IO[bytes]:
    return io.BufferedReader(file, _BUFFER_BYTES)


class _Zstandard(io.RawIOBase):
    """What a .zst file holds; EOFError where it is cut short, which the package would not say."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(
                f"{path} needs the package zstandard: pip install 'retnet[data]'"
            ) from error
        self._file, self._error = file, zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj
        self._frame: Any = None
        self._left, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._left or self._file.read(_FRAME_BYTES)
            self._left = b""
            if not block:
                if self._frame is not None:
                    raise EOFError("a frame of it has no end")
                return 0
            self._ready = memoryview(self._decompress(block))
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _decompress(self, block: bytes) -> bytes:
        if self._frame is None:
            self._frame = self._new()
        try:
            data: bytes = self._frame.decompress(block)
        except self._error as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            self._left, self._frame = self._frame.unused_data, None
        return data
