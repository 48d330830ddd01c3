"""What is to be done: the input in units of work, and which documents are held out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retnet.data.prepare.config import PrepareConfig
from retnet.data.prepare.inputs import Input, Piece, sum_of_known
from retnet.data.prepare.passages import LONGEST_WHOLE_BYTES
from retnet.data.prepare.units import Rule, Unit

_UNITS = 64
_LEAST_UNIT_BYTES, _MOST_UNIT_BYTES = 4_000_000, 256_000_000

_VALIDATION_SHARE, _MOST_VALIDATION_BYTES = 0.03, 4_000_000
_SHARE_OF_UNKNOWN = 0.001
# A longer document is no sample of the others.
_LONGEST_HELD_OUT = 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Units of work.

    Attributes:
        train: of the text to train on, from which documents are held out.
        validation: of the text that is all held out, where it was given.
        inputs: identities of all that is read.
    """

    train: tuple[Unit, ...]
    validation: tuple[Unit, ...]
    inputs: list[Any]


def make_plan(
    config: PrepareConfig, inputs: Sequence[Input], validation: Sequence[Input] | None
) -> Plan:
    """How inputs are prepared. validation: what is held out; None to choose from the others.

    It depends on these alone, and not on how many processes there are.
    """
    expected = sum_of_known(each.expected_bytes for each in inputs)
    if config.max_bytes is not None:
        expected = min(expected or config.max_bytes, config.max_bytes)
    size = config.shard_bytes or _unit_bytes(expected)
    rule = Rule(below=0, longest=0) if validation is not None else _rule(config, expected)
    held_out = Rule(below=0, longest=0, all=True)
    return Plan(
        train=_units("train", inputs, size, config, rule, config.max_bytes),
        validation=_units("validation", validation or (), size, config, held_out, None),
        inputs=[each.identity() for each in (*inputs, *(validation or ()))],
    )


def _rule(config: PrepareConfig, expected: int | None) -> Rule:
    share, longest = config.validation_share, LONGEST_WHOLE_BYTES
    if expected is not None:
        longest = min(longest, int(_LONGEST_HELD_OUT * expected))
    if share is None and expected is None:
        share = _SHARE_OF_UNKNOWN
    elif share is None:
        share = min(_VALIDATION_SHARE, _MOST_VALIDATION_BYTES / max(1, expected or 0))
    return Rule(below=int(share * 2**64), longest=longest)


def _unit_bytes(expected: int | None) -> int:
    """Text in a unit: many units to share among processes, and no shards of some kB."""
    if expected is None:
        return _MOST_UNIT_BYTES
    return max(_LEAST_UNIT_BYTES, min(expected // _UNITS, _MOST_UNIT_BYTES))


def _units(
    kind: str,
    inputs: Sequence[Input],
    size: int,
    config: PrepareConfig,
    rule: Rule,
    most_bytes: int | None,
) -> tuple[Unit, ...]:
    groups = _groups((piece for each in inputs for piece in each.pieces(size)), size)
    return tuple(
        Unit(
            name=f"{kind}-{number:05}",
            pieces=pieces,
            rule=rule,
            # Twice, so that a unit that comes out a little larger is one shard.
            part_bytes=2 * size,
            most_bytes=most_bytes,
            skip_bad=config.skip_bad,
        )
        for number, pieces in enumerate(groups)
    )


def _groups(pieces: Iterable[Piece], size: int) -> Iterator[tuple[Piece, ...]]:
    """Small pieces together, each group of about `size` bytes."""
    group: list[Piece] = []
    gathered = 0
    for piece in pieces:
        expected = piece.expected_bytes
        more = size if expected is None else expected
        if group and gathered + more > size:
            yield tuple(group)
            group, gathered = [], 0
        group.append(piece)
        gathered += more
    if group:
        yield tuple(group)
