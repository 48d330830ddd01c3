"""Documents become ids, many at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retnet.data.prepare.passages import cut_before
from retnet.data.pretrained import PretrainedTokenizer, load_any_tokenizer
from retnet.data.shards import DTYPES
from retnet.data.tokenizer import ByteTokenizer

# Tokenizers need a hundred times the memory of a text; longer ones are cut.
_LONGEST_TEXT_BYTES = 1 << 20


class Encoded(NamedTuple):
    """Some documents one after the other. ids: [N], bos before each; lengths: of each, with bos."""

    ids: NDArray[Any]
    lengths: NDArray[np.int64]


class Encoder(Protocol):
    """A tokenizer with all that preparing needs to know of it."""

    dtype: str
    vocab_size: int
    bos_id: int
    eos_id: int
    fingerprint: str

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """The ids of some texts, UTF-8."""


class ByteEncoder:
    """Bytes as ids, by arithmetic on all texts at once."""

    dtype = "uint16"
    vocab_size = ByteTokenizer.vocab_size
    bos_id = ByteTokenizer.bos_id
    eos_id = ByteTokenizer.eos_id
    fingerprint = ByteTokenizer().fingerprint

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """The ids of some texts."""
        # A byte before each makes the place that bos takes.
        data = np.frombuffer(b"\0".join((b"", *texts)), np.uint8)
        ids = np.add(data, np.uint16(ByteTokenizer.num_special), dtype=DTYPES[self.dtype])
        lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
        ids[np.cumsum(lengths) - lengths] = self.bos_id
        return Encoded(ids, lengths)


class PretrainedEncoder:
    """A tokenizer.json. One without a bos begins documents with its eos.

    Raises ValueError for a tokenizer that has neither.
    """

    def __init__(self, tokenizer: PretrainedTokenizer) -> None:
        if tokenizer.eos_id is None:
            raise ValueError(
                "the tokenizer's files name no token that ends a text, or one that it has not; "
                "pass one of its tokens as eos_token"
            )
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self.eos_id = tokenizer.eos_id
        self.bos_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        self.fingerprint = tokenizer.fingerprint

    def encode(self, texts: Sequence[bytes]) -> Encoded:
        """The ids of some texts."""
        parts = [_parts(text) for text in texts]
        flat = [part.decode() for document in parts for part in document]
        encoded = iter(self._tokenizer.encode_batch(flat))
        ids: list[int] = []
        ends = []
        for document in parts:
            ids.append(self.bos_id)
            for _ in document:
                ids += next(encoded)
            ends.append(len(ids))
        return Encoded(np.array(ids, DTYPES[self.dtype]), np.diff(ends, prepend=0))


def load_encoder(directory: Path) -> Encoder:
    """The encoder of the tokenizer that is saved in a folder."""
    tokenizer = load_any_tokenizer(directory, vocab_size=1 << 32)
    if isinstance(tokenizer, ByteTokenizer):
        return ByteEncoder()
    return PretrainedEncoder(tokenizer)


def _parts(text: bytes) -> list[bytes]:
    """A text in parts that tokenizers have the memory for."""
    if len(text) <= _LONGEST_TEXT_BYTES:
        return [text]
    parts = []
    start = 0
    while len(text) - start > _LONGEST_TEXT_BYTES:
        stop = cut_before(text, start + _LONGEST_TEXT_BYTES, after=start)
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]
