"""Data sets by name: where they are, what they are, and the parts of them that are scored."""

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from retnet.checkpoint.files import replace_files
from retnet.data.prepare.config import PrepareConfig
from retnet.data.prepare.documents import read_documents
from retnet.data.prepare.run import prepare
from retnet.data.shards import is_prepared, read_header
from retnet.data.text import Document
from retnet.data.tokens import TokenDocument, byte_documents

_ARTICLES = "^ = [^=].* = $"
_HELD_OUT_PASSAGE = 4_096  # bytes


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """A data set that is known by name.

    Attributes:
        path: under the folder of data sets.
        split_on: the line that begins a document of it, see `PrepareConfig`.
        origin: where it comes from, for who hasn't got it.
    """

    path: str
    split_on: str | None = None
    origin: str


KNOWN = {
    "wikitext-2": TextSource(
        path="wikitext-2/wiki.train.tokens",
        split_on=_ARTICLES,
        origin="the training split of Salesforce/wikitext, wikitext-2-v1, as one text file",
    ),
    "wikitext-2-validation": TextSource(
        path="wikitext-2/wiki.valid.tokens",
        split_on=_ARTICLES,
        origin="the validation split of Salesforce/wikitext, wikitext-2-v1, as one text file",
    ),
    "gutenberg": TextSource(
        path="gutenberg",
        origin="text files of books from Project Gutenberg without its notices, such as its "
        "numbers 2600, 2701 and 16215",
    ),
    "qmsum": TextSource(
        path="qmsum",
        origin="the meetings of QMSum's validation split, one JSON object with a text a line",
    ),
}

# Parts of the standard library, for who has no data set at all.
_LIBRARY = {"stdlib-email": "email", "stdlib-json": "json"}


class TextSet(NamedTuple):
    """A data set and what tells it from another: for the settings of cells."""

    name: str
    sha256: str


def find_source(name: str, data: Path) -> str:
    """Where a data set is: what `retnet prepare` reads, or a folder that it has made.

    Raises ValueError saying which name and path, and how to get it.
    """
    if name in _LIBRARY:
        return str(Path(sysconfig.get_path("stdlib")) / _LIBRARY[name])
    known = KNOWN.get(name)
    path = data / (known.path if known else name)
    if not path.exists():
        origin = known.origin if known else "anything that `retnet prepare` reads or has made"
        raise ValueError(
            f"data set {name!r} is not at {str(path)!r}; put it there ({origin}), or name the "
            "folder that has it by --data"
        )
    return str(path)


def read_set(name: str, data: Path) -> Iterator[Document]:
    """The documents of a data set."""
    split_on = KNOWN[name].split_on if name in KNOWN else None
    return read_documents(find_source(name, data), split_on=split_on)


@cache
def describe_set(name: str, data: Path) -> TextSet:
    """A data set and its checksum: that of its documents, or of what was prepared from them."""
    source = find_source(name, data)
    if is_prepared(source):
        return TextSet(name, read_header(source).fingerprint)
    found = hashlib.sha256()
    for document in read_set(name, data):
        found.update(len(document.data).to_bytes(8, "little") + document.data)
    return TextSet(name, found.hexdigest())


class TrainingText(NamedTuple):
    """A data set to train on, and how many bytes of which other are read while that is done."""

    name: str
    held_out: str
    held_out_bytes: int


def prepare_text(text: TrainingText, data: Path, texts: Path) -> Path:
    """A data set made ready for training, passages of another held out, in a folder of `texts`;
    one that comes prepared stays where it is.
    """
    name, source = text.name, find_source(text.name, data)
    if is_prepared(source):
        return Path(source)
    length = min(_HELD_OUT_PASSAGE, text.held_out_bytes // 24)
    held_out_set = read_set(text.held_out, data)
    validation = passages(held_out_set, num_bytes=text.held_out_bytes, length=length)
    texts.mkdir(parents=True, exist_ok=True)
    held_out = texts / f"{name}-held-out.jsonl"
    lines = "".join(json.dumps({"text": each.data.decode()}) + "\n" for each in validation)
    if not held_out.exists() or held_out.read_text(encoding="utf-8") != lines:
        replace_files({held_out: lambda path: path.write_text(lines, encoding="utf-8")})
    config = PrepareConfig(
        sources=(source,),
        out=str(texts / name),
        validation=str(held_out),
        split_on=KNOWN[name].split_on if name in KNOWN else None,
    )
    return prepare(config).out


def passages(documents: Iterable[Document], *, num_bytes: int, length: int) -> list[Document]:
    """About so many bytes of some documents: passages of `length` bytes spread evenly over them
    all, always the same. Each is UTF-8 and within one document, so some are a little shorter.
    """
    long_enough = [document for document in documents if len(document.data) >= length]
    total = sum(len(document.data) - length + 1 for document in long_enough)
    if not total:
        raise ValueError(f"no document is as long as a passage of {length} bytes")
    count = max(1, min(num_bytes // length, total))
    places = [total * (2 * index + 1) // (2 * count) for index in range(count)]
    found: list[Document] = []
    for place in places:
        chosen, start = _locate(long_enough, place, length)
        part = chosen.data[start : start + length].decode(errors="ignore").encode()
        found.append(Document(f"{chosen.name}@{start}", part))
    return found


def _locate(documents: Sequence[Document], place: int, length: int) -> tuple[Document, int]:
    for document in documents:
        starts = len(document.data) - length + 1
        if place < starts:
            return document, place
        place -= starts
    raise AssertionError("a place beyond all documents")


def scored_passages(name: str, data: Path, *, num_bytes: int, length: int) -> list[TokenDocument]:
    """The passages of a data set that models of bytes are scored on."""
    source = find_source(name, data)
    if is_prepared(source):
        raise ValueError(
            f"data set {name!r} at {source!r} has tokens, and it is scored by its bytes: put the "
            "text there that it was prepared from"
        )
    try:
        found = passages(read_set(name, data), num_bytes=num_bytes, length=length)
    except ValueError as error:
        raise ValueError(f"data set {name!r}: {error}") from error
    return byte_documents(document.data for document in found)
