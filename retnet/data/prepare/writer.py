"""Shards as they are written: aside, then renamed."""

import hashlib
import os
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from retnet.data.shards import DTYPES, INDEX_DTYPE, Shard, ids_path, index_path

PART_SUFFIX = ".part"


class ShardWriter:
    """Writes one shard; nothing is left of it where `finish` was not reached.

    Use it in a `with`. name: of the shard, in the folder `directory`.
    """

    def __init__(self, directory: Path, name: str, dtype: str) -> None:
        self._directory, self._name, self._dtype = directory, name, DTYPES[dtype]
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._rows: list[NDArray[np.uint64]] = []
        self.num_tokens = 0
        self.num_documents = 0
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Leave nothing of what is not finished."""
        if self._file is not None:
            self._file.close()
            for path in (self._aside(".bin"), self._aside(".npy")):
                path.unlink(missing_ok=True)

    def write(
        self, ids: NDArray[Any], starts: NDArray[np.int64], num_bytes: NDArray[np.int64]
    ) -> None:
        """Append some ids.

        starts: [N], where documents begin among them. num_bytes: [N], the text of each; or [N + 1],
        the first being of the document that goes on from what was written before.
        """
        if self._file is None:
            self._file = self._aside(".bin").open("wb", buffering=0)
        data = np.ascontiguousarray(ids, self._dtype).view(np.uint8).data
        self._digest.update(data)
        _write_all(self._file, data)
        if len(num_bytes) > len(starts):
            if self.num_documents:
                self._rows[-1][-1, 1] += np.uint64(num_bytes[0])
            self.num_bytes += int(num_bytes[0])
            num_bytes = num_bytes[1:]
        if len(starts):
            rows = np.stack([starts + self.num_tokens, num_bytes], axis=1)
            self._rows.append(rows.astype(INDEX_DTYPE))
        self.num_tokens += len(ids)
        self.num_documents += len(starts)
        self.num_bytes += int(num_bytes.sum())

    def finish(self) -> Shard | None:
        """Put the shard in its place; None where nothing was written."""
        if self._file is None:
            return None
        index = _npy(np.concatenate([np.zeros((0, 2), INDEX_DTYPE), *self._rows]))
        with self._aside(".npy").open("wb", buffering=0) as file:
            _write_all(file, memoryview(index))
            os.fsync(file.fileno())
        os.fsync(self._file.fileno())
        self._file.close()
        shard = Shard(
            name=self._name,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )
        os.replace(self._aside(".bin"), ids_path(self._directory, shard))
        os.replace(self._aside(".npy"), index_path(self._directory, shard))
        self._file = None
        return shard

    def _aside(self, suffix: str) -> Path:
        return self._directory / f".{self._name}{suffix}.{os.getpid()}{PART_SUFFIX}"


def write_text(path: Path, text: str) -> None:
    """Write a file aside, to the disk, then rename it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        with aside.open("wb", buffering=0) as file:
            _write_all(file, memoryview(text.encode()))
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write_all(file: IO[bytes], data: memoryview) -> None:
    """Write all of it: a nearly full disk takes a part, and says why with the next."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        error.filename = file.name
        raise


def _npy(array: NDArray[Any]) -> bytes:
    """An array as a .npy file."""
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
