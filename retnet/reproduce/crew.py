"""Who measures cells: this process, one after the other, or several others at the same time."""

from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from retnet.allocator import tune_allocator
from retnet.processes import end_with_parent, without_interrupts
from retnet.reproduce.cells import Cell, CellFolder, Place, Record, measure_cell

# Training that is told to end saves first.
_PATIENCE_S = 60.0

Work = tuple[Cell, Place]


def run_cells(
    cells: Sequence[Cell],
    folder: CellFolder,
    place: Callable[[Path, int], Place],
    *,
    jobs: int,
    num_threads: int,
) -> Iterator[tuple[Cell, Record]]:
    """Each cell with its record, those known before first, the others as they are done.

    place: of a folder and a number of threads. Timed cells run alone, after all others, with all
    threads. Raises what went wrong in a cell once those beside it have ended; `StoppedError` or
    KeyboardInterrupt after a signal.
    """
    known = {cell.key: folder.read(cell) for cell in cells}
    for cell in cells:
        if (record := known[cell.key]) is not None:
            yield cell, record
    missing = [cell for cell in cells if known[cell.key] is None]
    untimed = [cell for cell in missing if not cell.is_timed]
    jobs = min(jobs, len(untimed))
    share = max(1, num_threads // max(1, jobs))

    def work(cell: Cell, count: int) -> Work:
        path = folder.work(cell)
        path.mkdir(parents=True, exist_ok=True)
        return cell, place(path, count)

    beside = [work(cell, share) for cell in untimed]
    alone = [work(cell, num_threads) for cell in missing if cell.is_timed]
    for done in (_side_by_side(beside, jobs) if jobs > 1 else _in_turn(beside), _in_turn(alone)):
        for cell, record in done:
            folder.save(cell, record)
            yield cell, record


def _in_turn(works: Sequence[Work]) -> Iterator[tuple[Cell, Record]]:
    for cell, place in works:
        yield cell, measure_cell(cell, place)


def _side_by_side(works: Sequence[Work], jobs: int) -> Iterator[tuple[Cell, Record]]:
    """Each in a process of its own, so many at a time."""
    waiting = list(reversed(works))
    running: dict[Connection[Any, Any], tuple[SpawnProcess, Cell]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                connection, process = _start(*waiting[-1])
                running[connection] = (process, waiting.pop()[0])
            ready = wait(list(running))
            for connection in [each for each in running if each in ready]:
                process, cell = running.pop(connection)
                yield cell, _receive(connection, process, cell)
    finally:
        _end([process for process, _ in running.values()])


def _start(cell: Cell, place: Place) -> "tuple[Connection[Any, Any], SpawnProcess]":
    # Not forked: other libraries' threads don't survive that.
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, cell, place), daemon=True)
    with without_interrupts():
        process.start()
    theirs.close()
    return ours, process


def _measure(connection: "Connection[Any, Any]", cell: Cell, place: Place) -> None:
    """What a process does."""
    end_with_parent()
    tune_allocator()
    try:
        connection.send(measure_cell(cell, place))
    except Exception as error:
        connection.send(error)


def _receive(connection: "Connection[Any, Any]", process: SpawnProcess, cell: Cell) -> Record:
    """What a process found; raises what went wrong in it."""
    try:
        outcome = connection.recv()
    except EOFError:
        process.join()
        raise OSError(
            f"the process that measured {cell.key} ended by itself (exit code "
            f"{process.exitcode}), as it does where memory is short; run the same command again, "
            "with fewer jobs"
        ) from None
    process.join()
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, Record)
    return outcome


def _end(processes: Sequence[SpawnProcess]) -> None:
    """What is in training saves where it is, and ends."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_S)
        process.kill()
        process.join()
