"""Lossless compression of documents with a model: each token by the probability it was given.

What reads the code knows nothing but the code and the model, so a model that looked ahead could
not read what it had written. Code and cost are of equal size: a token with probability p takes
-log2(p) bits.

The code is: a checksum of all that follows, 4 bytes; the number of documents, and the number of
tokens of each, seven bits a byte, the lowest first, the eighth where more follow; one arithmetic
code of all tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from retnet.decoding import Decoder
from retnet.eval.arithmetic import ArithmeticDecoder, ArithmeticEncoder, cumulative

_CHECKSUM_BYTES = 4
# Documents that are read side by side.
_NUM_ROWS = 16

# (which document, which of its tokens, the probabilities as `cumulative` gives them) -> the token.
NextToken = Callable[[int, int, NDArray[np.int64]], int]


def compress(
    decoder: Decoder,
    documents: Sequence[Sequence[int]],
    *,
    bos_id: int,
    progress: Callable[[int], None] | None = None,
) -> bytes:
    """The code of some documents' ids; each is read from bos and an empty state.

    progress: called after each step with the tokens that it coded. Raises ValueError for ids that
    the model doesn't have.
    """
    _check(decoder, documents, bos_id)
    encoder = ArithmeticEncoder()

    def write(document: int, place: int, sums: NDArray[np.int64]) -> int:
        token = documents[document][place]
        encoder.write(token, sums)
        return token

    reading = _Reading(decoder, [len(document) for document in documents], bos_id)
    reading.run(write, progress)
    body = _header(reading.lengths) + encoder.finish()
    return crc32(body).to_bytes(_CHECKSUM_BYTES, "little") + body


def decompress(
    decoder: Decoder,
    code: bytes,
    *,
    bos_id: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The ids of the documents that `compress` wrote with the same weights, on the same machine.

    Another model gives other ids, or an error. Raises ValueError for a code that is damaged.
    """
    checksum, body = code[:_CHECKSUM_BYTES], code[_CHECKSUM_BYTES:]
    if crc32(body).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError("the code is damaged: its checksum is not that of its bytes")
    lengths, rest = _read_header(body)
    documents: list[list[int]] = [[] for _ in lengths]
    coder = ArithmeticDecoder(rest)

    def read(document: int, place: int, sums: NDArray[np.int64]) -> int:
        token = coder.read(sums)
        documents[document].append(token)
        return token

    _Reading(decoder, lengths, bos_id).run(read, progress)
    return documents


@dataclass(frozen=True)
class _Reading:
    """Documents of known lengths as a decoder reads them, some side by side, token by token.

    It is the same for writing and for reading a code: the same rows in the same steps, so that all
    probabilities are equal to the last bit.
    """

    decoder: Decoder
    lengths: Sequence[int]
    bos_id: int

    def run(self, next_token: NextToken, progress: Callable[[int], None] | None) -> None:
        """Ask for each token of each document, in the order that the code has."""
        order = sorted(range(len(self.lengths)), key=lambda document: -self.lengths[document])
        for first in range(0, len(order), _NUM_ROWS):
            self._run_group(order[first : first + _NUM_ROWS], next_token, progress)

    def _run_group(
        self,
        group: Sequence[int],
        next_token: NextToken,
        progress: Callable[[int], None] | None,
    ) -> None:
        """Documents side by side, the longest first: those that have ended are at the end."""
        state, last = self.decoder.new_state(len(group)), [self.bos_id] * len(group)
        for place in range(self.lengths[group[0]]):
            reading = [document for document in group if self.lengths[document] > place]
            rows = torch.arange(len(reading), device=self.decoder.device)
            tokens = torch.tensor(last[: len(reading)], device=self.decoder.device)
            logits = self.decoder.step_(tokens, state, rows).cpu().numpy()
            last = [
                next_token(document, place, cumulative(row))
                for document, row in zip(reading, logits, strict=True)
            ]
            if progress is not None:
                progress(len(reading))


def header_bytes(lengths: Sequence[int]) -> int:
    """How many bytes of a code are not of the text's tokens: checksum, and numbers of tokens."""
    return _CHECKSUM_BYTES + len(_header(lengths))


def _check(decoder: Decoder, documents: Sequence[Sequence[int]], bos_id: int) -> None:
    size = decoder.vocab_size
    ends = [end for document in documents if document for end in (min(document), max(document))]
    for token in (bos_id, *ends):
        if not 0 <= token < size:
            raise ValueError(f"documents must be of ids in [0, {size}), got {token}")


def _header(lengths: Sequence[int]) -> bytes:
    return b"".join(map(_number, (len(lengths), *lengths)))


def _number(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _read_header(body: bytes) -> tuple[list[int], bytes]:
    """The lengths of documents, and what follows."""
    rest = iter(body)
    lengths = [_read_number(rest) for _ in range(_read_number(rest))]
    return lengths, bytes(rest)


def _read_number(rest: Iterator[int]) -> int:
    number, shift = 0, 0
    for part in rest:
        number |= (part & 0x7F) << shift
        shift += 7
        if part < 0x80:
            return number
    raise ValueError("the code ends before its text does; is a part of it missing?")
