"""Cells: each is measured once, with the settings it was asked for, and kept."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.reproduce.cells import Cell, CellFolder, Place, Record, StoppedError
from retnet.reproduce.crew import run_cells


def square(place: Place, *, number: int) -> dict[str, Any]:
    """What is measured: also where, in which process and when."""
    (place.folder / "scratch").write_text("x")
    return {
        "square": number**2,
        "process": os.getpid(),
        "threads": place.threads,
        "at": time.monotonic(),
    }


def fail(place: Place, *, number: int) -> dict[str, Any]:
    if number == 2:
        raise ValueError("two can't be measured")
    return square(place, number=number)


def wait_long(place: Place, *, number: int) -> dict[str, Any]:
    time.sleep(600)
    return {}


def stop(place: Place, *, number: int) -> dict[str, Any]:
    raise StoppedError


def make(number: int, measure: Callable[..., Any] = square, *, is_timed: bool = False) -> Cell:
    return Cell(
        key=f"cell-{number}", measure=measure, settings={"number": number}, is_timed=is_timed
    )


def run(
    cells: list[Cell], path: Path, *, jobs: int = 1, num_threads: int = 2
) -> list[tuple[Cell, Record]]:
    def place(folder: Path, threads: int) -> Place:
        return Place(folder=folder, data=path, texts=path, device="cpu", threads=threads)

    folder = CellFolder(path / "cells")
    found = {cell.key: folder.read(cell) for cell in cells}
    known = [(cell, record) for cell in cells if (record := found[cell.key]) is not None]
    missing = [cell for cell in cells if found[cell.key] is None]
    return [*known, *run_cells(missing, folder, place, jobs=jobs, num_threads=num_threads)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_is_measured_once(jobs: int, tmp_path: Path) -> None:
    cells = [make(number) for number in range(3)]
    first = run(cells[:2], tmp_path, jobs=jobs)
    again = run(cells, tmp_path, jobs=jobs)
    assert {cell.key: record.result["square"] for cell, record in again} == {
        "cell-0": 0,
        "cell-1": 1,
        "cell-2": 4,
    }
    before = {cell.key: record for cell, record in first}
    assert all(record == before[cell.key] for cell, record in again if cell.key in before)
    processes = {record.result["process"] for _, record in first}
    assert (os.getpid() in processes) == (jobs == 1)
    assert {record.result["threads"] for _, record in first} == {2 // jobs}


def test_a_record_tells_its_machine_and_settings(tmp_path: Path) -> None:
    run([make(3)], tmp_path)
    record = json.loads((tmp_path / "cells/cell-3.json").read_text())
    assert record["settings"] == {"number": 3}
    assert {"cpu", "cores", "torch", "python", "commit", "date", "retnet"} <= record[
        "machine"
    ].keys()
    assert not (tmp_path / "cells/unfinished/cell-3").exists()  # it is done


def test_only_what_is_begun_has_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run([make(1, stop), make(2)], tmp_path)
    assert [path.name for path in (tmp_path / "cells/unfinished").iterdir()] == ["cell-1"]


def test_other_settings(tmp_path: Path) -> None:
    """What was measured with others is neither taken for it nor overwritten."""
    run([make(3)], tmp_path)
    path, text = tmp_path / "cells/cell-3.json", (tmp_path / "cells/cell-3.json").read_text()
    other = Cell(key="cell-3", measure=square, settings={"number": 4})
    with pytest.raises(
        ValueError, match=r"cell-3.json was .*number was 3 and is 4; choose another"
    ):
        run([other], tmp_path)
    assert path.read_text() == text


def test_a_damaged_record(tmp_path: Path) -> None:
    run([make(3)], tmp_path)
    (tmp_path / "cells/cell-3.json").write_text("{")
    with pytest.raises(ValueError, match="delete it to measure anew"):
        run([make(3)], tmp_path)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_is_told_after_all_others_are_done(jobs: int, tmp_path: Path) -> None:
    """It names the cell, and costs no other."""
    message = "1 of 3 not measured; cell-2: two can't be measured"
    with pytest.raises(ValueError, match=message):
        run([make(number, fail) for number in (2, 0, 1)], tmp_path, jobs=jobs)
    names = {path.name for path in (tmp_path / "cells").glob("*.json")}
    assert names == {"cell-0.json", "cell-1.json"}


def die(place: Place, *, number: int) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_process_that_dies(tmp_path: Path) -> None:
    """As where memory is short: all ends, at once, and what is kept is kept."""
    start = time.monotonic()
    with pytest.raises(OSError, match=r"cell-1: a process ended by itself \(exit code -9\)"):
        run([make(1, die), make(2, wait_long)], tmp_path, jobs=2)
    assert time.monotonic() - start < 120


def run_out_of_memory(place: Place, *, number: int) -> dict[str, Any]:
    torch.empty(2**50)
    return {}


def test_too_little_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cell-1: there is not enough memory: .*allocate"):
        run([make(1, run_out_of_memory)], tmp_path)


def test_what_was_stopped_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run([make(1, stop)], tmp_path)
    assert not list((tmp_path / "cells").glob("*.json"))


def test_timed_cells_run_alone(tmp_path: Path) -> None:
    """After all others, in this process, with all threads."""
    cells = [make(0, is_timed=True), make(1), make(2)]
    found = {cell.key: record.result for cell, record in run(cells, tmp_path, jobs=2)}
    timed = found.pop("cell-0")
    assert (timed["process"], timed["threads"]) == (os.getpid(), 2)
    assert timed["at"] > max(other["at"] for other in found.values())


def test_results_are_numbers(tmp_path: Path) -> None:
    """No NaN becomes a result."""
    with pytest.raises(ValueError, match="cell-nan: Out of range float values are not JSON"):
        run([make(float("nan"))], tmp_path)  # type: ignore[arg-type]
