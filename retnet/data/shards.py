"""Prepared tokens on disk: shards that are mapped into memory, and the header that describes them.

A folder of them holds

    data.json             the header: what the ids are, and each shard with its sizes and checksums
    train-00000.bin       ids, one after the other, as little-endian uint16 or uint32
    train-00000.npy       [N, 2] uint64, a row for every document that begins in the shard: where
                          its bos stands there, and how many bytes of its text the shard has
    validation-00000.bin, .npy
    tokenizer.json, tokenizer_config.json

Every document begins with bos. One that is too long for a shard goes on in the next, which then
begins without. The header is written last: a folder that has one is complete.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_FILE = "data.json"
FORMAT, VERSION = "retnet tokens", 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
INDEX_DTYPE: np.dtype[np.uint64] = np.dtype("<u8")

# A mapped file holds a file descriptor, of which processes often may have no more than 1024.
_MOST_MAPPED = 256
_BLOCK_BYTES = 1 << 22


class DataError(ValueError):
    """Prepared data that can't be read, or are not what their header says."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a sequence of ids.

    Attributes:
        name: of its two files, which end in .bin and .npy.
        num_tokens: ids in it.
        num_documents: documents that begin in it.
        num_bytes: text that it stands for.
        sha256: of the ids.
        index_sha256: of the file of documents.
    """

    name: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a folder of prepared tokens holds.

    Attributes:
        dtype: of the ids, "uint16" or "uint32".
        vocab_size: every id is below it.
        bos_id, eos_id: what begins every document, and what is to follow its last token.
        tokenizer: fingerprint of what made the ids.
        train, validation: the shards, in their order.
        source: what the folder was made from, and how.
    """

    dtype: str
    vocab_size: int
    bos_id: int
    eos_id: int
    tokenizer: str
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    source: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Differs where an id, the split or the tokenizer does."""
        parts = [self.tokenizer, self.dtype, str(self.bos_id), str(self.eos_id)]
        for split in (self.train, self.validation):
            parts += ["split", *(f"{shard.sha256} {shard.index_sha256}" for shard in split)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def to_json(self) -> str:
        """The header as it stands in its file."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


class TokenShards:
    """Some shards of a folder as one sequence of ids; what is not read takes no memory.

    Raises DataError where a file is missing or has another size than the header says.
    """

    def __init__(self, directory: str | Path, shards: Sequence[Shard], dtype: str) -> None:
        self._directory, self._shards, self._dtype = Path(directory), tuple(shards), DTYPES[dtype]
        self._ends = list(accumulate(shard.num_tokens for shard in shards))
        self._mapped = lru_cache(maxsize=_MOST_MAPPED)(self._map)
        for shard in shards:
            check_sizes(self._directory, shard, self._dtype)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The ids from `start` to before `stop`, 1-D: a view where they are in one shard."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"ids {start} to {stop} were asked for, there are {len(self)}")
        row = bisect_right(self._ends, start)
        if start == stop or stop <= self._ends[row]:
            return self._part(row, start, stop)
        ids = np.empty(stop - start, self._dtype)
        place = start
        while place < stop:
            end = min(stop, self._ends[row])
            ids[place - start : end - start] = self._part(row, place, end)
            place, row = end, row + 1
        return ids

    def documents(self) -> NDArray[np.uint64]:
        """[N, 2], a row for every document: where its bos stands, and its bytes of text."""
        rows = [np.zeros((0, 2), INDEX_DTYPE)]
        for shard, end in zip(self._shards, self._ends, strict=True):
            index = read_index(self._directory, shard)
            rows.append(index + np.array([end - shard.num_tokens, 0], INDEX_DTYPE))
        return np.concatenate(rows)

    def _part(self, row: int, start: int, stop: int) -> NDArray[Any]:
        """Ids that are all in one shard."""
        if start == stop:
            return np.empty(0, self._dtype)
        begin = self._ends[row] - self._shards[row].num_tokens
        return self._mapped(row)[start - begin : stop - begin]

    def _map(self, row: int) -> NDArray[Any]:
        path = ids_path(self._directory, self._shards[row])
        mapped = np.memmap(path, self._dtype, mode="r")
        return mapped.view(np.ndarray)  # slices of a memmap are slow to make


def ids_path(directory: Path, shard: Shard) -> Path:
    """The file of a shard's ids."""
    return directory / f"{shard.name}.bin"


def index_path(directory: Path, shard: Shard) -> Path:
    """The file of a shard's documents."""
    return directory / f"{shard.name}.npy"


def is_prepared(directory: str | Path) -> bool:
    """Whether a folder holds prepared tokens."""
    return (Path(directory) / HEADER_FILE).is_file()


def read_header(directory: str | Path) -> Header:
    """The header of a folder; DataError where it isn't one of ours, or can't be read."""
    path = Path(directory) / HEADER_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{directory} holds no prepared tokens: there is no {HEADER_FILE} in it; make them "
            "with `retnet prepare`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}; prepare again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is no header of prepared tokens; it is another program's file")
    if content.get("version") != VERSION:
        raise DataError(
            f"{path} is of version {content.get('version')!r}, this program reads {VERSION}; "
            "prepare again, or use the program that made it"
        )
    try:
        return _header(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}; prepare again") from error


def read_index(directory: Path, shard: Shard) -> NDArray[np.uint64]:
    """The documents of a shard, [N, 2], mapped; DataError where the file is not what it should."""
    path = index_path(directory, shard)
    try:
        # An empty array can't be mapped.
        index: NDArray[np.uint64] = np.load(
            path, mmap_mode="r" if shard.num_documents else None, allow_pickle=False
        )
    except FileNotFoundError:
        raise DataError(f"there is no {path}; prepare again") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}; prepare again") from error
    if index.shape != (shard.num_documents, 2) or index.dtype != INDEX_DTYPE:
        raise DataError(
            f"{path} holds {index.dtype} of shape {list(index.shape)}, expected uint64 of shape "
            f"[{shard.num_documents}, 2]; prepare again"
        )
    return index


def check_sizes(directory: Path, shard: Shard, dtype: np.dtype[Any]) -> None:
    """DataError where a shard's files don't have the sizes that the header says."""
    path, expected = ids_path(directory, shard), shard.num_tokens * dtype.itemsize
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"there is no {path}, which {HEADER_FILE} lists; prepare again") from None
    if size != expected:
        was = "cut short" if size < expected else "too long"
        raise DataError(
            f"{path} is {was}: {size:,} bytes, expected {expected:,}; copy it anew or prepare again"
        )
    read_index(directory, shard)


def verify(directory: str | Path, progress: Callable[[int], object] = lambda _: None) -> Header:
    """Read all shards of a folder and compare them with their checksums.

    progress: called with the number of bytes read, again and again. Raises DataError, which names
    every file that is not as it was.
    """
    folder, header = Path(directory), read_header(directory)
    damaged = []
    for shard in (*header.train, *header.validation):
        check_sizes(folder, shard, DTYPES[header.dtype])
        for path, expected in (
            (ids_path(folder, shard), shard.sha256),
            (index_path(folder, shard), shard.index_sha256),
        ):
            if _sha256(path, progress) != expected:
                damaged.append(path.name)
    if damaged:
        names = ", ".join(damaged)
        raise DataError(f"{directory}: not as they were written: {names}; prepare again")
    return header


def _sha256(path: Path, progress: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def _header(content: Mapping[str, Any]) -> Header:
    values = {field.name: content[field.name] for field in fields(Header)}
    for split in ("train", "validation"):
        values[split] = tuple(_shard(each) for each in values[split])
    header = Header(**values)
    if header.dtype not in DTYPES:
        raise ValueError(f"dtype {header.dtype!r}, expected one of {', '.join(DTYPES)}")
    for name in ("vocab_size", "bos_id", "eos_id"):
        _require_count(name, getattr(header, name))
    return header


def _shard(values: Mapping[str, Any]) -> Shard:
    shard = Shard(**values)
    if Path(shard.name).name != shard.name:
        raise ValueError(f"a shard is called {shard.name!r}, expected a file beside the header")
    for name in ("num_tokens", "num_documents", "num_bytes"):
        _require_count(name, getattr(shard, name))
    return shard


def _require_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}, expected a number >= 0")
