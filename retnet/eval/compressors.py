"""What general compressors make of the texts that a model is scored on."""

import bz2
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from retnet.data.text import Document, num_bytes

EXTRA = "compressors"


@dataclass(frozen=True)
class CompressorScore:
    """How small a compressor makes texts, each document alone.

    Attributes:
        name: the compressor and its settings.
        compressed_bytes: of all documents, headers included; None where the compressor is missing.
        bits_per_byte: the same as bits by bytes of text.
    """

    name: str
    compressed_bytes: int | None
    bits_per_byte: float | None


def score_compressors(texts: Sequence[Document]) -> Iterator[CompressorScore]:
    """Those of xz and bzip2 at their best settings, and of PPMd, whose package may be missing."""
    yield _score("xz -9e", _xz, texts)
    yield _score("bzip2 -9", _bzip2, texts)
    ppmd = "PPMd, order 6, 16 MB"
    is_there = find_spec("pyppmd") is not None
    yield _score(ppmd, _ppmd, texts) if is_there else CompressorScore(ppmd, None, None)


def _score(
    name: str, compress: Callable[[bytes], bytes], texts: Sequence[Document]
) -> CompressorScore:
    size = sum(len(compress(text.data)) for text in texts)
    return CompressorScore(name, size, 8 * size / num_bytes(texts))


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def _bzip2(data: bytes) -> bytes:
    return bz2.compress(data, 9)


def _ppmd(data: bytes) -> bytes:
    """PPMd, variant I: prediction from the last six bytes, learnt as it goes."""
    # Not an import statement: mypy would read it differently with the package and without.
    pyppmd = import_module("pyppmd")
    code: bytes = pyppmd.compress(data, max_order=6, mem_size=16 << 20, variant="I")
    return code
