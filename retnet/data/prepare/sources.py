"""Finds what is to be read: files of several kinds, folders of them, data sets."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from retnet.data.prepare.hub import PREFIX, open_hub
from retnet.data.prepare.inputs import Input
from retnet.data.prepare.lines import SUFFIXES, LinesInput, holds_lines
from retnet.data.prepare.opening import ARCHIVES, inner_suffix
from retnet.data.prepare.passages import LONGEST_WHOLE_BYTES
from retnet.data.prepare.rows import SUFFIX, open_rows
from retnet.data.prepare.texts import Division, TextInput
from retnet.data.text import STDLIB, files_under, stdlib_files, stdlib_folder

# Other programs' files end in it too: it is looked into.
_JSON = ".json"

_logger = logging.getLogger(__name__)


class Finder:
    """Finds inputs.

    Attributes:
        text_field: the field or column with the text.
        split: of data sets that the package `datasets` reads.
        division: where text files are divided; None where each is one document.
        leave_out: a folder in which nothing is looked for: the one that is written to, if any.
    """

    def __init__(
        self, *, text_field: str, split: str, division: Division | None, leave_out: Path | None
    ) -> None:
        self._field, self._split, self._division = text_field, split, division
        self._leave_out = leave_out and leave_out.resolve()

    def find(self, sources: Sequence[str]) -> list[Input]:
        """The inputs of all sources, in their order; ValueError for what isn't there."""
        return [each for source in sources for each in self._one(source)]

    def _one(self, source: str) -> list[Input]:
        if source == STDLIB:
            return self._stdlib()
        if source.startswith(PREFIX):
            return [open_hub(source, self._split, self._field)]
        path = Path(source)
        if path.is_dir():
            return self._folder(path)
        if not path.exists():
            raise ValueError(
                f"{source!r} is not there; pass a file, a folder, "
                f'"{STDLIB}", or "{PREFIX}NAME" for a data set of the Hugging Face hub'
            )
        if not path.stat().st_size:
            raise ValueError(f"{source!r} is empty (0 bytes); pass a file with text in it")
        if path.suffix.lower() in ARCHIVES or inner_suffix(path) in ARCHIVES:
            raise ValueError(f"{source!r} is an archive; unpack it and pass the folder")
        return [self._file(path, is_found=False)]

    def _folder(self, root: Path) -> list[Input]:
        paths = [path for path in files_under(root) if not self._is_own(path)]
        inputs = [self._file(path, is_found=True) for path in paths if path.stat().st_size]
        return list(_distinct(inputs, root, len(paths) - len(inputs)))

    def _is_own(self, path: Path) -> bool:
        return self._leave_out in path.resolve().parents

    def _stdlib(self) -> list[Input]:
        inputs: list[Input] = []
        num_foreign = 0
        for path in stdlib_files():
            try:
                has_text = bool(path.read_bytes().decode().strip())
            except UnicodeDecodeError:
                num_foreign += 1
                continue
            if has_text:
                inputs.append(self._text(path, is_found=True))
        root = stdlib_folder()
        _logger.info("%s: left out %d files that are not UTF-8", root, num_foreign)
        return list(_distinct(inputs, root, 0))

    def _file(self, path: Path, *, is_found: bool) -> Input:
        suffix = inner_suffix(path)
        status = path.stat()
        if path.suffix.lower() == SUFFIX:
            return open_rows(path, status.st_size, status.st_mtime_ns, self._field)
        is_lines = suffix in SUFFIXES
        if is_lines and suffix == _JSON and is_found:
            is_lines = holds_lines(path, self._field)
        if not is_lines:
            return self._text(path, is_found=is_found)
        return LinesInput(
            path=str(path),
            size=status.st_size,
            changed_ns=status.st_mtime_ns,
            field=self._field,
        )

    def _text(self, path: Path, *, is_found: bool) -> TextInput:
        status = path.stat()
        return TextInput(
            path=str(path),
            size=status.st_size,
            changed_ns=status.st_mtime_ns,
            division=self._division,
            is_found=is_found,
        )


def make_division(split_on: str | None, separator: str | None) -> Division | None:
    """Where text files are divided, as the configuration says."""
    if split_on is not None:
        return Division(pattern=split_on or "^", keeps_line=True)
    if separator is not None:
        return Division(pattern=rf"^{re.escape(separator)}\r?$", keeps_line=False)
    return None


def digest(value: Any) -> str:
    """A hash of identities, or of files by name."""
    text = json.dumps(value, sort_keys=True, default=lambda data: data.hex())
    return hashlib.sha256(text.encode()).hexdigest()


def _distinct(inputs: Sequence[Input], root: Path, num_empty: int) -> Iterator[Input]:
    """The inputs without copies of text files, which are counted in the log with empty ones.

    Only files that are documents are compared, and of these only those that have the same size.
    """
    sizes = Counter(each.size for each in inputs if _is_document(each))
    seen: set[bytes] = set()
    num_copies = 0
    for each in inputs:
        if _is_document(each) and sizes[each.size] > 1:
            key = hashlib.sha256(Path(each.path).read_bytes()).digest()[:16]
            if key in seen:
                num_copies += 1
                continue
            seen.add(key)
        yield each
    if num_empty or num_copies:
        _logger.info("%s: left out %d empty files and copies", root, num_empty + num_copies)
    if not inputs:
        raise ValueError(f"{str(root)!r} holds no files with text; pass a folder that does")


def _is_document(each: Input) -> TypeGuard[TextInput]:
    return (
        isinstance(each, TextInput) and each.division is None and each.size <= LONGEST_WHOLE_BYTES
    )
