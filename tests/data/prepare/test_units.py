"""Units of work, and the document that is divided so that its end can be held out."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from retnet.data.prepare.passages import Advance, Item, LeftOut, Passage
from retnet.data.prepare.units import Part, Rule, Unit
from retnet.data.shards import Shard

PASSAGES: list[Item] = [
    Passage(b"first"),
    LeftOut("bad"),
    Passage("äb".encode(), ends=False),
    Passage(b"cdef", begins=False, ends=False),
    Passage(b"ghi", begins=False),
    Passage(b"last"),
]


@dataclass
class Listed:
    """A piece of items that are there already; counts how often it is asked for its size."""

    found: list[Item]
    asked: list[int] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        self.asked.append(1)
        return 3

    expected_bytes = num_bytes

    def items(self, advance: Advance, *, skip_bad: bool) -> Iterator[Item]:
        yield from self.found


def unit(found: list[Item], cut: tuple[int, int] | None = None) -> Unit:
    return Unit(
        name="train-00000",
        pieces=(Listed(found), Listed([])),
        rule=Rule(below=0, longest=0, cut=cut),
        part_bytes=1,
        most_bytes=None,
        skip_bad=True,
    )


def test_sizes_are_added_up_once() -> None:
    """They are asked for with every file that is read: 50,000 files took minutes."""
    one = unit(PASSAGES)
    assert (one.num_bytes, one.num_bytes, one.expected_bytes, one.expected_bytes) == (6, 6, 6, 6)
    for piece in one.pieces:
        assert isinstance(piece, Listed)
        assert len(piece.asked) == 2


@pytest.mark.parametrize("kept", range(1, 10))
def test_a_divided_document(kept: int) -> None:
    """Its beginning is trained on, its end held out, wherever its passages and characters end."""
    items = list(unit(PASSAGES, (1, kept)).items(lambda _: None))
    assert items[:2] == PASSAGES[:2]
    assert items[-1] == PASSAGES[-1]
    passages = [item for item in items[2:-1] if isinstance(item, Passage)]
    train, held_out = passages[:-1], passages[-1]
    assert held_out.held_out
    assert (held_out.begins, held_out.ends) == (True, True)
    assert not any(passage.held_out for passage in train)
    text = b"".join(passage.text for passage in train)
    assert len(text) == (0 if kept == 1 else kept)
    assert (text + held_out.text).decode() == "äbcdefghi"
    assert [passage.begins for passage in train] == [True, False, False][: len(train)]
    assert not train or train[-1].ends


def test_no_other_document_is_divided() -> None:
    items = list(unit(PASSAGES, (0, 2)).items(lambda _: None))
    head, tail = Passage(b"fi", held_out=False), Passage(b"rst", held_out=True)
    assert items == [head, tail, *PASSAGES[1:]]
    assert list(unit(PASSAGES).items(lambda _: None)) == PASSAGES


def test_records_survive() -> None:
    shard = Shard(
        name="a", num_tokens=3, num_documents=1, num_bytes=2, sha256="b", index_sha256="c"
    )
    part = Part(train=shard, num_items=3, smallest=("ab", 1, 2), longest=(2, 0), keys=["ab"])
    part.leave_out("bad")
    part.leave_out("bad")
    assert part.left_out == {"bad": 2}
    assert Part.from_json(part.to_json()) == part
    assert Part.from_json(Part().to_json()) == Part()
    assert (part.shards, part.num_bytes) == ([shard], 2)
