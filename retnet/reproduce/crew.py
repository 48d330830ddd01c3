"""Who measures cells: this process, one after the other, or several others at the same time."""

from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from retnet.allocator import tune_allocator
from retnet.processes import Worker
from retnet.reproduce.cells import Cell, CellFolder, Place, Record, StoppedError, measure_cell

# Training that is told to end saves first.
_PATIENCE_S = 60.0

Work = tuple[Cell, Place]
# A cell with its record, or with what went wrong.
Done = tuple[Cell, Record | Exception]


def run_cells(
    cells: Sequence[Cell],
    folder: CellFolder,
    place: Callable[[Path, int], Place],
    *,
    jobs: int,
    num_threads: int,
) -> Iterator[tuple[Cell, Record]]:
    """Measure cells, each handed out with its record once that is kept.

    place: of a folder and a number of threads. Timed cells run alone, after all others, with all
    threads. What goes wrong in a cell is raised, as a ValueError, once all others are done; at once
    `StoppedError` or KeyboardInterrupt, which are signals, and OSError.
    """
    untimed = [cell for cell in cells if not cell.is_timed]
    jobs = min(jobs, len(untimed))
    share = max(1, num_threads // max(1, jobs))

    def work(cell: Cell, count: int) -> Work:
        return cell, place(folder.work(cell), count)

    beside = [work(cell, share) for cell in untimed]
    alone = [work(cell, num_threads) for cell in cells if cell.is_timed]
    failures: list[str] = []
    for done in (
        _side_by_side(beside, jobs) if jobs > 1 else _one_by_one(beside),
        _one_by_one(alone),
    ):
        for cell, outcome in done:
            if isinstance(outcome, StoppedError):
                raise outcome
            if isinstance(outcome, OSError):
                raise OSError(f"{cell.key}: {outcome}") from outcome
            if isinstance(outcome, Exception):
                failures.append(f"{cell.key}: {str(outcome) or type(outcome).__name__}")
                continue
            folder.save(cell, outcome)
            yield cell, outcome
    if failures:
        raise ValueError(f"{len(failures)} of {len(cells)} not measured; {'; '.join(failures)}")


def _one_by_one(works: Sequence[Work]) -> Iterator[Done]:
    for cell, place in works:
        yield cell, _outcome(measure_cell, cell, place)


def _outcome(measure: Callable[..., Record], *args: Any) -> Record | Exception:
    try:
        return measure(*args)
    except Exception as error:
        return error


def _side_by_side(works: Sequence[Work], jobs: int) -> Iterator[Done]:
    """Each in a process of its own, so many at a time."""
    waiting = list(reversed(works))
    running: dict[Connection[Any, Any], tuple[Worker[Record], Cell]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                worker = Worker(_measure, *waiting[-1])
                running[worker.connection] = (worker, waiting.pop()[0])
            ready = wait(list(running))
            for connection in [each for each in running if each in ready]:
                worker, cell = running.pop(connection)
                yield cell, _outcome(worker.result)
    finally:
        # What is in training saves where it is, and ends.
        for worker, _ in running.values():
            worker.terminate()
        for worker, _ in running.values():
            worker.end(_PATIENCE_S)


def _measure(cell: Cell, place: Place) -> Record:
    tune_allocator()
    return measure_cell(cell, place)
