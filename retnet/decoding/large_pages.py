"""Memory in pages of 2 MB where the system has them: what is read whole in every step lies there.

With pages of 4 kB a processor looks up half a million addresses to read a model of 2 GB once; on
virtual machines, where each is looked up twice, that takes as long as the reading.
"""

import mmap
import sys
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

_PAGE_BYTES = 2**21
_CHUNK_BYTES = 2**26
_ALIGNED_BYTES = 64


class LargePages:
    """Gives out tensors on the CPU; their memory is freed with the last one of each chunk.

    Where the system refuses large pages they lie on ordinary ones.
    """

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8, device="cpu")

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of zeros, which begins at a multiple of 64 bytes."""
        num_bytes = prod(shape) * dtype.itemsize
        taken = -(-num_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
        if taken > len(self._chunk):
            self._chunk = _map(max(taken, _CHUNK_BYTES))
        mine, self._chunk = self._chunk[:num_bytes], self._chunk[taken:]
        return mine.view(dtype).view(shape)

    def copy(self, x: Tensor) -> Tensor:
        """A contiguous copy of a tensor on the CPU."""
        return self.zeros(tuple(x.shape), x.dtype).copy_(x)


def are_large(x: Tensor) -> bool:
    """Whether a tensor lies in memory that `LargePages` gave out."""
    return x.device.type == "cpu" and x.untyped_storage().data_ptr() % _PAGE_BYTES == 0


def _map(num_bytes: int) -> Tensor:
    """Fresh memory, all zeros, that begins where a large page does. What isn't used takes none."""
    if sys.platform == "win32":
        mapping = mmap.mmap(-1, num_bytes + _PAGE_BYTES)
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapping = mmap.mmap(-1, num_bytes + _PAGE_BYTES, flags=flags)
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    start = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
    return torch.frombuffer(
        mapping, dtype=torch.uint8, offset=-start % _PAGE_BYTES, count=num_bytes
    )
