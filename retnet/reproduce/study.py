"""What a study is: the cells it is made of, and what they say together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from retnet.reproduce.cells import Cell, Record, Values
from retnet.reproduce.config import Budget
from retnet.reproduce.findings import Findings
from retnet.reproduce.texts import TextSet


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked of a study.

    Attributes:
        budget: how much of it.
        seeds: that models are trained from.
        describe: a data set by its name, with its checksum; ValueError where it isn't there.
        checkpoints: folders to be evaluated.
    """

    budget: Budget
    seeds: Sequence[int]
    describe: Callable[[str], TextSet]
    checkpoints: Sequence[str] = ()


# What cells have found, by their keys; those that are not done yet are missing.
Records = Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table or figure of the paper.

    Attributes:
        cells: the measurements.
        find: what these say, in which some may be missing; None while there are too few.
        texts: the data sets that must be ready for training: (its name, what is held out).
    """

    cells: Callable[[Ask], list[Cell]]
    find: Callable[[Ask, Records], Findings | None]
    texts: Callable[[Ask], Sequence[tuple[str, str]]] = lambda _: ()


def results(cells: Sequence[Cell], records: Records) -> list[tuple[Values, Values]]:
    """(settings, result) of each cell that is done."""
    return [
        (dict(cell.settings), records[cell.key].result) for cell in cells if cell.key in records
    ]


def slug(name: str) -> str:
    """A name as part of a file's."""
    kept = "".join(each if each.isalnum() else "-" for each in name.lower())
    return "-".join(part for part in kept.split("-") if part)
