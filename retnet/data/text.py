"""Finds text in a file, a folder or the standard library, and holds some out for validation."""

import hashlib
import logging
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STDLIB = "stdlib"

_VALIDATION_SHARE = 0.03
_SINGLE_FILE_SHARE = 0.10
_MAX_VALIDATION_BYTES = 1_000_000
_BINARY_PROBE_BYTES = 8192

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """One text. name: its path relative to where it was found, with "/"; data: its UTF-8 bytes."""

    name: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents to train on, and documents that are never trained on."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]


def num_bytes(documents: Iterable[Document]) -> int:
    """Bytes of text in some documents."""
    return sum(len(document.data) for document in documents)


def load_corpus(source: str | Path) -> Corpus:
    """The documents of `source` (see `find_documents`), split by `hold_out`."""
    return hold_out(find_documents(source))


def find_documents(source: str | Path) -> tuple[Document, ...]:
    """The texts of a file, of a folder, or of the name "stdlib", in a stable order.

    In a folder, hidden, binary and empty files and exact copies are left out and counted in the
    log. A folder that is itself called "stdlib" is reached as "./stdlib". Raises ValueError for a
    path that is not there or not readable, a text that is not UTF-8, and where no text is left.
    """
    if source == STDLIB:
        return _stdlib_documents()
    path = Path(source)
    if path.is_dir():
        return _folder_documents(path)
    if not path.exists():
        raise ValueError(
            f'data {str(source)!r} is not there; pass a text file, a folder of text, or "{STDLIB}"'
        )
    data = _utf8_text(path)
    if not data.strip():
        raise ValueError(
            f"data {str(source)!r} is empty ({len(data)} bytes); pass a file with text in it"
        )
    return (Document(path.name, data),)


def hold_out(documents: Sequence[Document]) -> Corpus:
    """Split documents into training and validation, the same ones wherever this runs.

    Whole documents are held out, in the order of a hash of their names, until they make up 3 % of
    the bytes, and never more than 1 MB. Where no whole document is small enough for that (a single
    file, a few long ones), the last 10 % of the longest is held out instead, also at most 1 MB.
    """
    budget = int(min(_VALIDATION_SHARE * num_bytes(documents), _MAX_VALIDATION_BYTES))
    chosen: set[str] = set()
    taken = 0
    for document in sorted(documents, key=_name_hash):
        # What doesn't fit is passed over; stopping near the budget keeps that from favouring short
        # files.
        if taken >= 0.9 * budget:
            break
        if taken + len(document.data) <= budget:
            chosen.add(document.name)
            taken += len(document.data)
    if not chosen or taken < budget / 2:
        return _hold_out_end(documents)
    return Corpus(
        train=tuple(document for document in documents if document.name not in chosen),
        validation=tuple(document for document in documents if document.name in chosen),
    )


def _hold_out_end(documents: Sequence[Document]) -> Corpus:
    longest = max(documents, key=lambda document: len(document.data))
    data = longest.data
    cut = len(data) - int(min(_SINGLE_FILE_SHARE * len(data), _MAX_VALIDATION_BYTES))
    while cut < len(data) and (data[cut] & 0xC0) == 0x80:  # never inside a UTF-8 character
        cut -= 1
    if not 0 < cut < len(data):
        raise ValueError(
            f"data has too little text to hold any out: {len(data)} bytes; pass more text"
        )
    start, end = Document(longest.name, data[:cut]), Document(longest.name, data[cut:])
    train = tuple(start if document is longest else document for document in documents)
    return Corpus(train=train, validation=(end,))


def _name_hash(document: Document) -> bytes:
    return hashlib.sha256(document.name.encode(errors="surrogateescape")).digest()


def _stdlib_documents() -> tuple[Document, ...]:
    """The .py files of the running Python's standard library, and its tests where there are any.

    Installed packages are left out, and so is what the build of this Python wrote about its
    machine.
    """
    root = stdlib_folder()
    documents, num_foreign = [], 0
    for path in stdlib_files():
        data = _read(path)
        if _utf8_error(data) is None:
            documents.append(Document(path.relative_to(root).as_posix(), data))
        else:
            num_foreign += 1  # a few tests of source encodings
    _logger.info("%s: left out %d files that are not UTF-8", root, num_foreign)
    return _distinct(documents, root)


def stdlib_folder() -> Path:
    """Where the running Python's standard library is."""
    return Path(sysconfig.get_path("stdlib"))


def stdlib_files() -> Iterator[Path]:
    """Its .py files, as they are: a few are not UTF-8."""
    root = stdlib_folder()
    return (path for path in files_under(root) if _is_stdlib_source(path.relative_to(root)))


def _is_stdlib_source(relative: Path) -> bool:
    installed = {"site-packages", "dist-packages", "__pycache__"}
    is_build_record = relative.name.startswith("_sysconfigdata")
    return (
        relative.suffix == ".py"
        and not installed.intersection(relative.parts)
        and not is_build_record
    )


def _folder_documents(root: Path) -> tuple[Document, ...]:
    documents, num_binary = [], 0
    for path in files_under(root):
        if b"\0" in _read(path, _BINARY_PROBE_BYTES):
            num_binary += 1
        else:
            documents.append(Document(path.relative_to(root).as_posix(), _utf8_text(path)))
    if num_binary:
        _logger.info("%s: left out %d binary files", root, num_binary)
    return _distinct(documents, root)


def _distinct(documents: Sequence[Document], root: Path) -> tuple[Document, ...]:
    """The documents with text in them, each text once: never in training and in validation."""
    first_of: dict[bytes, Document] = {}
    for document in documents:
        if document.data.strip():
            first_of.setdefault(document.data, document)
    num_dropped = len(documents) - len(first_of)
    if num_dropped:
        _logger.info("%s: left out %d empty files and copies", root, num_dropped)
    if not first_of:
        raise ValueError(
            f"data folder {str(root)!r} holds no text files; pass one that does, or a file"
        )
    return tuple(first_of.values())


def files_under(root: Path) -> Iterator[Path]:
    """The regular files under a folder, hidden files and folders left out, in sorted order."""
    num_hidden = 0
    for folder, subfolders, names in os.walk(root, onerror=_raise_unreadable):
        num_hidden += sum(name.startswith(".") for name in subfolders + names)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())
    if num_hidden:
        _logger.info("%s: left out %d hidden files and folders", root, num_hidden)


def _raise_unreadable(error: OSError) -> None:
    raise ValueError(
        f"cannot read data folder {error.filename!r}: {error.strerror}; check its permissions"
    ) from error


def _read(path: Path, num_bytes: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise ValueError(
            f"cannot read data file {str(path)!r}: {error.strerror}; check its permissions"
        ) from error


def _utf8_text(path: Path) -> bytes:
    data = _read(path)
    error = _utf8_error(data)
    if error is not None:
        raise ValueError(
            f"data file {str(path)!r} is not UTF-8: byte {error.start} is "
            f"0x{data[error.start]:02x}; convert it to UTF-8 or leave it out"
        )
    return data


def _utf8_error(data: bytes) -> UnicodeDecodeError | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error
    return None
