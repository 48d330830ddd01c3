"""Cells: the single measurements that a table is made of, each kept in a file once it is done."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Any, Concatenate

from retnet import __version__
from retnet.checkpoint.files import replace_files
from retnet.device import threads
from retnet.measure import machine_facts

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a cell works.

    Attributes:
        folder: its own; it is deleted once the cell is done.
        data: the data sets.
        texts: those that were made ready for training.
        device: of models that are trained.
        threads: of the CPU.
    """

    folder: Path
    data: Path
    texts: Path
    device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement.

    Attributes:
        key: what its file is called.
        measure: a function of a module, called as measure(place, **settings): values for JSON.
        settings: plain values, all that the result depends on.
        is_timed: whether it tells times, so that nothing else may run beside it.
    """

    key: str
    measure: Callable[Concatenate[Place, ...], Values]
    settings: Mapping[str, Any]
    is_timed: bool = False


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a cell found: with which settings, on which machine, in how many seconds."""

    key: str
    settings: Values
    result: Values
    machine: Values
    seconds: float

    def to_dict(self) -> Values:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class StoppedError(Exception):
    """A signal ended a cell before it was done; what it has is kept, and it can be gone on with."""


class CellFolder:
    """The records of cells, and where cells work.

    Attributes:
        path: with a file for each record; in "unfinished", a folder for each cell that is none yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def work(self, cell: Cell) -> Path:
        """Where a cell works."""
        return self.path / "unfinished" / cell.key

    def read(self, cell: Cell) -> Record | None:
        """What was found before, if it was; ValueError where that was with other settings."""
        path = self._file(cell)
        if not path.exists():
            return None
        try:
            record = Record(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} can't be read: {error}; delete it to measure anew") from error
        differences = list(_differences(record.settings, _plain(cell.settings)))
        if differences:
            raise ValueError(
                f"{path} was measured with other settings: {'; '.join(differences)}; choose "
                "another out folder, or delete the file to measure anew"
            )
        return record

    def save(self, cell: Cell, record: Record) -> None:
        """Keep a record, all of it or nothing, and forget what the cell worked with."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record.to_dict(), indent=1, allow_nan=False) + "\n"
        replace_files({self._file(cell): lambda path: path.write_text(text, encoding="utf-8")})
        rmtree(self.work(cell), ignore_errors=True)

    def _file(self, cell: Cell) -> Path:
        return self.path / f"{cell.key}.json"


def measure_cell(cell: Cell, place: Place) -> Record:
    """Measure a cell in this process."""
    start = perf_counter()
    place.folder.mkdir(parents=True, exist_ok=True)
    with threads(place.threads):
        try:
            result = cell.measure(place, **cell.settings)
        except RuntimeError as error:
            if "memory" in str(error):  # torch has a type of its own for it on GPUs alone
                raise MemoryError(f"there is not enough memory: {error}") from error
            raise
        machine = {"retnet": __version__, **machine_facts()}
    return Record(
        key=cell.key,
        settings=_plain(cell.settings),
        result=_plain(result),
        machine=machine,
        seconds=round(perf_counter() - start, 1),
    )


def _plain(values: Mapping[str, Any]) -> Values:
    """Values as JSON gives them back."""
    plain: Values = json.loads(json.dumps(values, allow_nan=False))
    return plain


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            path = f"{name}.{key}" if name else key
            yield from _differences(before.get(key), now.get(key), path)
    elif before != now:
        yield f"{name} was {before!r} and is {now!r}"
