"""A unit of work: some pieces of the input, which become some shards in the working folder.

What a unit becomes depends on nothing else, so that units may be done by any process, in any order,
again and again. Each shard it completes is recorded: with its `Part` the work goes on from there.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from retnet.data.prepare.inputs import Piece, sum_of_known
from retnet.data.prepare.passages import (
    Advance,
    Item,
    LeftOut,
    Passage,
    character_start,
)
from retnet.data.shards import Shard


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which documents are held out. A document's key is a hash of its text.

    Attributes:
        below: those with a key whose first 8 bytes, as a number, are below this, are held out ...
        longest: ... if they are no longer than so many bytes.
        cut: one document is divided: (its number in the unit, bytes of it in the unit that are
            trained on); what follows is held out.
        all: everything is.
    """

    below: int
    longest: int
    cut: tuple[int, int] | None = None
    all: bool = False

    def holds_out(self, key: bytes) -> bool:
        """Whether a document with this key, if it is not too long, is held out."""
        return int.from_bytes(key[:8], "big") < self.below


@dataclass(kw_only=True)
class Part:
    """What is known of a piece of work that is complete: a shard to train on and one held out.

    Attributes:
        train, held_out: the shards; None where nothing went there.
        num_items: documents and passages read for this part and those before it.
        num_documents: documents that ended in those, whatever became of them.
        open_bytes: of the document that goes on after it.
        is_last: whether the unit ends with it.
        left_out: how many documents were, and why.
        smallest: the smallest key that may be held out, as hexadecimal, how many documents have
            it, and the bytes of each.
        longest: the longest document: its bytes in the unit, and its number there.
        keys: of the documents held out, where they were asked for.
    """

    train: Shard | None = None
    held_out: Shard | None = None
    num_items: int = 0
    num_documents: int = 0
    open_bytes: int = 0
    is_last: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    smallest: tuple[str, int, int] | None = None
    longest: tuple[int, int] | None = None
    keys: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """As it is recorded."""
        return json.dumps(asdict(self)) + "\n"

    def leave_out(self, reason: str) -> None:
        """Count a document that isn't prepared."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    @property
    def shards(self) -> list[Shard]:
        """Those that it has."""
        return [shard for shard in (self.train, self.held_out) if shard is not None]

    @property
    def num_bytes(self) -> int:
        """Text in them."""
        return sum(shard.num_bytes for shard in self.shards)

    @classmethod
    def from_json(cls, text: str) -> "Part":
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for name in ("train", "held_out"):
            values[name] = None if values[name] is None else Shard(**values[name])
        for name in ("smallest", "longest"):
            values[name] = None if values[name] is None else tuple(values[name])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some pieces of the input, as one piece of work.

    Attributes:
        name: of its files.
        pieces: of the input.
        rule: which documents are held out.
        part_bytes: text after which another shard is begun.
        most_bytes: text after which it ends; None for all of it.
        skip_bad: whether documents that are not what they should be are left out.
        done: the parts that are complete.
    """

    name: str
    pieces: tuple[Piece, ...]
    rule: Rule
    part_bytes: int
    most_bytes: int | None
    skip_bad: bool
    done: tuple[Part, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.done) and self.done[-1].is_last

    @cached_property
    def num_bytes(self) -> int | None:
        """What there is to read; None where that is not known."""
        return sum_of_known(piece.num_bytes for piece in self.pieces)

    @cached_property
    def expected_bytes(self) -> int | None:
        """About how much text that is; None where that is not known."""
        return sum_of_known(piece.expected_bytes for piece in self.pieces)

    def items(self, advance: Advance) -> Iterator[Item]:
        """Everything that it reads."""
        pieces = (piece.items(advance, skip_bad=self.skip_bad) for piece in self.pieces)
        items = chain.from_iterable(pieces)
        return items if self.rule.cut is None else _divided(items, *self.rule.cut)


def record_path(directory: Path, unit: str, number: int) -> Path:
    """The file that records a part of a unit."""
    return directory / f"{part_name(unit, number)}.json"


def part_name(unit: str, number: int) -> str:
    """What the files of a part are called."""
    return f"{unit}-{number:03}"


def _divided(items: Iterator[Item], number: int, kept: int) -> Iterator[Item]:
    """The same, but document `number` ends after about `kept` bytes; what follows is held out."""
    count, rest = 0, b""
    for item in items:
        if isinstance(item, LeftOut):
            yield item
            continue
        if count != number:
            yield item
        else:
            cut = character_start(item.text, min(kept, len(item.text)))
            if cut and not rest:
                is_end = kept <= len(item.text) or item.ends
                yield Passage(item.text[:cut], item.begins, is_end, held_out=False)
            rest += item.text[cut:]
            kept = 0 if rest else kept - cut
            if item.ends and rest:
                yield Passage(rest, held_out=True)
        count += item.ends
