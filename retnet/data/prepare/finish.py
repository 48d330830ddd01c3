"""The end of a preparation: the last word on what is held out, and the shards in their places."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retnet.data.prepare.encoders import Encoder
from retnet.data.prepare.folder import WorkFolder
from retnet.data.prepare.units import Part, Rule, Unit
from retnet.data.prepare.writer import ShardWriter, write_text
from retnet.data.shards import (
    HEADER_FILE,
    Header,
    Shard,
    TokenShards,
    ids_path,
    index_path,
    read_index,
)

_SHARE_OF_ONE, _MOST_OF_ONE_BYTES = 0.10, 1_000_000
_BLOCK_TOKENS = 1 << 22


def parts_of(units: Iterable[Unit]) -> list[Part]:
    """All parts of some units, in their order."""
    return [part for unit in units for part in unit.done]


def num_bytes(units: Iterable[Unit]) -> int:
    """Text in the shards of some units."""
    return sum(part.num_bytes for part in parts_of(units))


def limited(units: Sequence[Unit], most_bytes: int | None) -> tuple[Unit, ...]:
    """The first of some units, and of their parts, that together have so much text."""
    left = float("inf") if most_bytes is None else most_bytes
    chosen = []
    for unit in units:
        parts = []
        for part in unit.done:
            if left > 0:
                parts.append(part)
                left -= part.num_bytes
        chosen.append(replace(unit, done=tuple(parts)))
    return tuple(unit for unit in chosen if unit.done)


def to_divide_anew(units: Sequence[Unit]) -> tuple[Unit, ...]:
    """The units to do once more, so that something is trained on and something held out.

    There is nothing to do where both is so. Otherwise the document with the smallest key is held
    out, if it is a small one among several; if not, the end of the longest: a tenth of it, and at
    most 1 MB.
    """
    parts = parts_of(units)
    if any(part.train for part in parts) and any(part.held_out for part in parts):
        return ()
    rule = _smallest_held_out(units) or replace(units[0].rule, below=0)
    if rule.below == 0:
        place, cut = _end_of_longest(units)
        rules = [replace(rule, cut=cut if index == place else None) for index in range(len(units))]
    else:
        rules = [rule] * len(units)
    return tuple(
        replace(unit, name=again_name(unit), rule=new, done=())
        for unit, new in zip(units, rules, strict=True)
        if new.cut is not None or _differs(unit, new)
    )


def again_name(unit: Unit) -> str:
    """What a unit is called when it is done once more."""
    return f"{unit.name}-again"


def _differs(unit: Unit, rule: Rule) -> bool:
    """Whether another rule may hold out other documents of a unit than its own did."""
    keys = [bytes.fromhex(part.smallest[0]) for part in unit.done if part.smallest is not None]
    return any(unit.rule.holds_out(key) or rule.holds_out(key) for key in keys)


def _smallest_held_out(units: Sequence[Unit]) -> Rule | None:
    """The rule that holds out the document with the smallest key; None where it is no sample."""
    parts = parts_of(units)
    found = [part.smallest for part in parts if part.smallest is not None]
    if not found:
        return None
    key, _, size = min(found)
    copies = sum(count for other, count, _ in found if other == key)
    text = sum(part.num_bytes for part in parts)
    if size * copies > _SHARE_OF_ONE * text:
        return None
    return replace(units[0].rule, below=int.from_bytes(bytes.fromhex(key)[:8], "big") + 1)


def _end_of_longest(units: Sequence[Unit]) -> tuple[int, tuple[int, int]]:
    """The unit with the longest document, and where that is cut: (number, bytes before)."""
    longest = [
        (part.longest[0], -place, part.longest[1])
        for place, unit in enumerate(units)
        for part in unit.done
        if part.longest is not None
    ]
    text = num_bytes(units)
    size, place, number = max(longest, default=(0, 0, 0))
    held_out = int(min(_SHARE_OF_ONE * text, _MOST_OF_ONE_BYTES, size // 2))
    if not held_out:
        raise ValueError(
            f"there is too little text to hold any out: {text} bytes"
            f"{_in_words(_left_out(units))}; pass more, or other text as validation"
        )
    return -place, (number, size - held_out)


def publish(
    work: WorkFolder,
    train: Sequence[Unit],
    validation: Sequence[Unit],
    encoder: Encoder,
    source: dict[str, Any],
) -> Header:
    """Put all shards of some units where they belong, and the header last.

    validation: units of which everything is held out. Where it was interrupted it may be called
    again.
    """
    held_out = [part.held_out for part in (*parts_of(train), *parts_of(validation))]
    merged = _merged(work, [shard for shard in held_out if shard is not None], encoder)
    shards = [part.train for part in parts_of(train) if part.train is not None]
    left_out = _left_out([*train, *validation])
    if not shards:
        raise ValueError(f"there is no text to train on{_in_words(left_out)}; pass some that has")
    if not merged:
        raise ValueError(f"validation holds no text{_in_words(left_out)}; pass some that does")
    header = Header(
        dtype=encoder.dtype,
        vocab_size=encoder.vocab_size,
        bos_id=encoder.bos_id,
        eos_id=encoder.eos_id,
        tokenizer=encoder.fingerprint,
        train=tuple(_moved(work, shard, f"train-{row:05}") for row, shard in enumerate(shards)),
        validation=merged,
        source={**source, "left_out": left_out},
    )
    for path in sorted(work.tokenizer.iterdir()):
        write_text(work.out / path.name, path.read_text(encoding="utf-8"))
    write_text(work.out / HEADER_FILE, header.to_json())
    return header


def _left_out(units: Iterable[Unit]) -> dict[str, int]:
    """How many documents of some units were left out, by the reason."""
    counts: Counter[str] = Counter()
    for part in parts_of(units):
        counts.update(part.left_out)
    return dict(sorted(counts.items()))


def _in_words(left_out: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    return f" (documents left out: {counts})" if counts else ""


def _moved(work: WorkFolder, shard: Shard, name: str) -> Shard:
    """A shard at its place, to which it may have been moved before."""
    moved = replace(shard, name=name)
    for path in (ids_path, index_path):
        before, after = path(work.path, shard), path(work.out, moved)
        if before.exists():
            os.replace(before, after)
        elif not after.exists():
            raise ValueError(f"{before} is gone; delete {work.out} and begin anew")
    return moved


def _merged(work: WorkFolder, shards: Sequence[Shard], encoder: Encoder) -> tuple[Shard, ...]:
    """All shards held out as one: there are many, and they are small."""
    with ShardWriter(work.out, "validation-00000", encoder.dtype) as writer:
        for shard in shards:
            ids = TokenShards(work.path, [shard], encoder.dtype)
            index = read_index(work.path, shard).astype(np.int64)
            # Of a document that began in the shard before.
            head = shard.num_bytes - int(index[:, 1].sum())
            sizes = np.concatenate([np.full(int(head > 0), head), index[:, 1]])
            _copy(ids, index[:, 0], sizes, writer)
        merged = writer.finish()
    return () if merged is None else (merged,)


def _copy(ids: TokenShards, starts: Any, sizes: Any, writer: ShardWriter) -> None:
    """Append a shard to another, block by block."""
    first = len(sizes) - len(starts)
    for begin in range(0, len(ids), _BLOCK_TOKENS):
        end = min(begin + _BLOCK_TOKENS, len(ids))
        rows = slice(*np.searchsorted(starts, [begin, end]))
        texts = sizes[rows.start + first : rows.stop + first]
        if begin == 0 and first:
            texts = sizes[: rows.stop + first]
        writer.write(ids.read(begin, end), starts[rows] - begin, texts)
