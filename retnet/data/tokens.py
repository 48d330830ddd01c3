"""What training reads: one long sequence of ids, and documents that are never trained on."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from retnet.data.pretrained import PretrainedTokenizer, load_any_tokenizer
from retnet.data.shards import DataError, TokenShards, is_prepared, read_header
from retnet.data.text import Corpus, Document, load_corpus, num_bytes
from retnet.data.tokenizer import ByteTokenizer

_PASSAGE_BYTES = 4096

Tokenizer = ByteTokenizer | PretrainedTokenizer


class TokenStream(Protocol):
    """One long sequence of ids in which every document begins with bos."""

    def __len__(self) -> int:
        """The number of ids."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The ids from `start` to before `stop`, 1-D, unsigned."""


class TokenDocument(NamedTuple):
    """A document to validate on. ids: 1-D, without bos; num_bytes: of text that they stand for."""

    ids: NDArray[Any]
    num_bytes: int


@dataclass(frozen=True)
class TokenArray:
    """A sequence in memory, [N] ids."""

    ids: NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The ids from `start` to before `stop`."""
        return self.ids[start:stop]


class PreparedDocuments(Sequence[TokenDocument]):
    """The documents of some shards, each read when it is asked for."""

    def __init__(self, shards: TokenShards) -> None:
        self._shards = shards
        self._starts, self._sizes = shards.documents().T

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> TokenDocument: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenDocument]: ...

    def __getitem__(self, index: int | slice) -> TokenDocument | list[TokenDocument]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        is_last = place == len(self) - 1
        stop = len(self._shards) if is_last else int(self._starts[place + 1])
        ids = self._shards.read(int(self._starts[place]) + 1, stop)
        return TokenDocument(ids, int(self._sizes[place]))


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """Tokens to train on, tokens that are never trained on, and what made them.

    Attributes:
        name: where they are from, as it was given.
        train: what is trained on.
        validation: what is not.
        train_bytes: text that `train` stands for.
        vocab_size: every id is below it.
        bos_id, eos_id: what begins every document of `train`, and what is to follow its last token.
        tokenizer: what made the ids of text.
        fingerprint: differs where text or tokenizer do.
    """

    name: str
    train: TokenStream
    validation: Sequence[TokenDocument]
    train_bytes: int
    vocab_size: int
    bos_id: int
    eos_id: int
    tokenizer: Tokenizer
    fingerprint: str

    @property
    def validation_bytes(self) -> int:
        """Text in the documents to validate on."""
        return sum(document.num_bytes for document in self.validation)

    def excerpt(self, num_bytes: int) -> Sequence[TokenDocument]:
        """About so many bytes of `validation`, always the same: passages spread evenly over it.

        Where it holds no more, it is itself. A passage may begin inside a document.
        """
        total = self.validation_bytes
        if total <= num_bytes:
            return self.validation
        ends = list(accumulate(len(document.ids) for document in self.validation))
        count = max(1, num_bytes // _PASSAGE_BYTES)
        length = max(1, min(num_bytes, _PASSAGE_BYTES) * ends[-1] // total)
        passages = []
        for place in (ends[-1] * (2 * index + 1) // (2 * count) for index in range(count)):
            row = bisect_right(ends, place)
            ids = self.validation[row].ids
            start = max(0, min(place - ends[row] + len(ids), len(ids) - length))
            passage = ids[start : start + length]
            text = self.tokenizer.decode_bytes(passage.tolist())
            passages.append(TokenDocument(passage, len(text)))
        return passages


def load_tokens(source: str) -> TokenData:
    """What to train on: a folder of `retnet prepare`, mapped into memory, or text as bytes.

    Text is a file, a folder or "stdlib", some of it held out (`data.text`). Raises ValueError for
    what isn't there or doesn't do: DataError for damaged shards, and where the tokenizer beside
    them is no longer the one that made them.
    """
    if is_prepared(source):
        return prepared_tokens(source)
    return byte_tokens(source, load_corpus(source))


def prepared_tokens(source: str) -> TokenData:
    """What `retnet prepare` put into a folder."""
    header = read_header(source)
    tokenizer = load_any_tokenizer(source, vocab_size=header.vocab_size)
    if tokenizer.fingerprint != header.tokenizer:
        raise DataError(
            f"the tokenizer in {source} is not the one that made its tokens; put back its files, "
            "or prepare again"
        )
    return TokenData(
        name=source,
        train=TokenShards(source, header.train, header.dtype),
        validation=PreparedDocuments(TokenShards(source, header.validation, header.dtype)),
        train_bytes=sum(shard.num_bytes for shard in header.train),
        vocab_size=header.vocab_size,
        bos_id=header.bos_id,
        eos_id=header.eos_id,
        tokenizer=tokenizer,
        fingerprint=header.fingerprint,
    )


def byte_tokens(name: str, corpus: Corpus) -> TokenData:
    """The bytes of a corpus as tokens."""
    tokenizer = ByteTokenizer()
    return TokenData(
        name=name,
        train=TokenArray(token_stream(corpus.train)),
        validation=byte_documents(document.data for document in corpus.validation),
        train_bytes=num_bytes(corpus.train),
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        tokenizer=tokenizer,
        fingerprint=_fingerprint(corpus),
    )


def byte_documents(texts: Iterable[bytes]) -> list[TokenDocument]:
    """Some texts as documents of byte tokens."""
    tokenizer = ByteTokenizer()
    return [TokenDocument(tokenizer.encode_array(text), len(text)) for text in texts]


def token_stream(documents: Sequence[Document]) -> NDArray[np.uint16]:
    """All documents as one array [N] of byte tokens, bos before each."""
    tokenizer = ByteTokenizer()
    bos = np.array([tokenizer.bos_id], dtype=np.uint16)
    pieces = [
        part for document in documents for part in (bos, tokenizer.encode_array(document.data))
    ]
    return np.concatenate(pieces)


def _fingerprint(corpus: Corpus) -> str:
    digest = hashlib.sha256(b"bytes")
    for documents in (corpus.train, corpus.validation):
        for document in documents:
            digest.update(len(document.data).to_bytes(8, "little"))
            digest.update(document.data)
    return digest.hexdigest()
