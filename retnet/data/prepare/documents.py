"""The documents of whatever `retnet prepare` reads, one after the other, as they are."""

from collections.abc import Iterator
from pathlib import Path

from retnet.data.prepare.passages import LeftOut
from retnet.data.prepare.sources import Finder, make_division
from retnet.data.text import Document

_PIECE_BYTES = 1 << 40  # no file is divided: nothing here works on two pieces at a time


def read_documents(
    source: str, *, text_field: str = "text", split: str = "train", split_on: str | None = None
) -> Iterator[Document]:
    """Every document of a source; see `PrepareConfig` for what that may be, and for the rest.

    Documents are named by their file and their number in it. Raises ValueError for what isn't there
    or isn't text.
    """
    division = make_division(split_on, None)
    finder = Finder(text_field=text_field, split=split, division=division, leave_out=None)
    for found in finder.find([source]):
        parts, number = list[bytes](), 0
        for piece in found.pieces(_PIECE_BYTES):
            for item in piece.items(lambda _: None, skip_bad=False):
                if isinstance(item, LeftOut):
                    continue
                parts.append(item.text)
                if item.ends:
                    name = Path(str(found.identity()[0])).name
                    yield Document(f"{name}#{number}", b"".join(parts))
                    parts, number = [], number + 1
