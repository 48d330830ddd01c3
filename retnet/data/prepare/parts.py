"""Does a unit: reads its documents, chooses their side, makes ids of them and writes these."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np

from retnet.data.prepare.encoders import Encoder
from retnet.data.prepare.passages import Advance, Item, LeftOut, Passage
from retnet.data.prepare.units import Part, Unit, part_name, record_path
from retnet.data.prepare.writer import ShardWriter, write_text
from retnet.data.shards import Shard

_KEY_BYTES = 16

_BATCH_BYTES = 1 << 20


def key_of(text: bytes) -> bytes:
    """What stands for a document's text, whatever holds it: copies have the same key."""
    return hashlib.sha256(text).digest()[:_KEY_BYTES]


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What units are done with.

    Attributes:
        directory: where parts are written and recorded.
        encoder: makes ids.
        left_out: keys of documents that are not prepared: other units have held them out.
    """

    directory: Path
    encoder: Encoder
    left_out: frozenset[bytes] = frozenset()


def do_unit(unit: Unit, workshop: Workshop, advance: Advance) -> tuple[Part, ...]:
    """Do what is left to do of a unit; all its parts.

    advance: called with the bytes read, again and again.
    """
    done = list(unit.done)
    items = unit.items(advance)
    for _ in islice(items, done[-1].num_items if done else 0):
        pass
    while not (done and done[-1].is_last):
        with _PartWriter(unit, workshop, done) as writer:
            done.append(writer.write(items))
    return tuple(done)


class _PartWriter:
    """Writes one part."""

    def __init__(self, unit: Unit, workshop: Workshop, done: Sequence[Part]) -> None:
        self._rule, self._left_out = unit.rule, workshop.left_out
        self._most_bytes, self._ends_unit = unit.part_bytes, False
        if unit.most_bytes is not None:
            left = unit.most_bytes - sum(part.num_bytes for part in done)
            self._most_bytes, self._ends_unit = min(left, unit.part_bytes), left <= unit.part_bytes
        name = part_name(unit.name, len(done))
        self._record = record_path(workshop.directory, unit.name, len(done))
        self._train, self._held_out = (
            _Side(
                ShardWriter(workshop.directory, f"{name}-{side}", workshop.encoder.dtype),
                workshop.encoder,
            )
            for side in ("train", "validation")
        )
        before = done[-1] if done else Part()
        self._part = Part(
            num_items=before.num_items,
            num_documents=before.num_documents,
            open_bytes=before.open_bytes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for side in (self._train, self._held_out):
            side.writer.discard()

    def write(self, items: Iterator[Item]) -> Part:
        """Write until the part is full or the items end, and record it."""
        part = self._part
        for item in items:
            part.num_items += 1
            self._add(item)
            if self._train.num_bytes + self._held_out.num_bytes >= self._most_bytes:
                part.is_last = self._ends_unit
                break
        else:
            part.is_last = True
        part.train, part.held_out = self._train.finish(), self._held_out.finish()
        write_text(self._record, part.to_json())
        return part

    def _add(self, item: Item) -> None:
        if isinstance(item, LeftOut):
            self._part.leave_out(item.reason)
            return
        self._measure(item)
        is_whole = item.begins and item.ends
        if is_whole and (not item.text or item.text.isspace()):
            self._part.leave_out("empty")
        elif is_whole:
            self._add_document(item)
        else:
            side = self._held_out if item.held_out or self._rule.all else self._train
            side.add_passage(item)

    def _add_document(self, item: Passage) -> None:
        key = key_of(item.text)
        if key in self._left_out:
            self._part.leave_out("held out elsewhere")
            return
        may_be_held_out = item.held_out is None and len(item.text) <= self._rule.longest
        if may_be_held_out:
            self._compare(key, len(item.text))
        if item.held_out or self._rule.all or (may_be_held_out and self._rule.holds_out(key)):
            self._held_out.add(item.text)
        else:
            self._train.add(item.text)
        if self._rule.all:
            self._part.keys.append(key.hex())

    def _measure(self, item: Passage) -> None:
        """Note the longest document."""
        part = self._part
        part.open_bytes += len(item.text)
        if item.ends:
            if part.longest is None or part.open_bytes > part.longest[0]:
                part.longest = (part.open_bytes, part.num_documents)
            part.num_documents += 1
            part.open_bytes = 0

    def _compare(self, key: bytes, size: int) -> None:
        """Note the document with the smallest key."""
        smallest = self._part.smallest
        if smallest is None or key.hex() < smallest[0]:
            self._part.smallest = (key.hex(), 1, size)
        elif key.hex() == smallest[0]:
            self._part.smallest = (key.hex(), smallest[1] + 1, size)


class _Side:
    """Gathers documents of one side, and writes many at once."""

    def __init__(self, writer: ShardWriter, encoder: Encoder) -> None:
        self.writer, self._encoder = writer, encoder
        self._texts: list[bytes] = []
        self._gathered = 0

    @property
    def num_bytes(self) -> int:
        """Text that came."""
        return self.writer.num_bytes + self._gathered

    def add(self, text: bytes) -> None:
        """A document."""
        self._texts.append(text)
        self._gathered += len(text)
        if self._gathered >= _BATCH_BYTES:
            self._flush()

    def add_passage(self, passage: Passage) -> None:
        """A part of a document."""
        self._flush()
        ids, _ = self._encoder.encode([passage.text])
        starts = np.zeros(1 if passage.begins else 0, np.int64)
        ids = ids if passage.begins else ids[1:]
        self.writer.write(ids, starts, np.array([len(passage.text)]))

    def finish(self) -> Shard | None:
        """Write what is left; the shard, where anything came."""
        self._flush()
        return self.writer.finish()

    def _flush(self) -> None:
        if not self._texts:
            return
        ids, lengths = self._encoder.encode(self._texts)
        sizes = np.fromiter(map(len, self._texts), np.int64, len(self._texts))
        self.writer.write(ids, np.cumsum(lengths) - lengths, sizes)
        self._texts, self._gathered = [], 0
