"""What a study is: the cells it is made of, and what they say together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retnet.reproduce.cells import Cell, Record, Values
from retnet.reproduce.config import Budget
from retnet.reproduce.findings import Findings
from retnet.reproduce.texts import TextSet, TrainingText, describe_set


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked of a study.

    Attributes:
        budget: how much of it.
        seeds: that models are trained from.
        data: the folder of data sets.
        checkpoints: folders to be evaluated.
    """

    budget: Budget
    seeds: Sequence[int]
    data: Path
    checkpoints: Sequence[str] = ()

    def describe(self, name: str) -> TextSet:
        """A data set by its name, with its checksum; ValueError where it isn't there."""
        return describe_set(name, self.data)


# What cells have found, by their keys; those that are not done yet are missing.
Records = Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table or figure of the paper.

    Attributes:
        cells: the measurements.
        find: what these say, in which some may be missing; None while there are too few.
        texts: the data sets that must be ready for training.
    """

    cells: Callable[[Ask], list[Cell]]
    find: Callable[[Ask, Records], Findings | None]
    texts: Callable[[Ask], Sequence[TrainingText]] = lambda _: ()


def results(cells: Sequence[Cell], records: Records) -> dict[int, Values]:
    """What was found from each seed, of those that are done."""
    return {
        cell.settings["training"]["seed"]: records[cell.key].result
        for cell in cells
        if cell.key in records
    }


def in_turn(groups: Iterable[Sequence[Cell]]) -> list[Cell]:
    """Seed by seed, so that an interrupted study has something of everything."""
    return [cell for cells in zip(*groups, strict=True) for cell in cells]


def slug(name: str) -> str:
    """A name as part of a file's."""
    kept = "".join(each if each.isalnum() else "-" for each in name.lower())
    return "-".join(part for part in kept.split("-") if part)
