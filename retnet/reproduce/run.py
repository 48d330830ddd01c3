"""Runs a study: what is missing is measured, and the tables are written anew after every cell."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from retnet import __version__
from retnet.checkpoint.files import replace_files
from retnet.measure import machine_facts
from retnet.reproduce.cells import Cell, CellFolder, Place, Record
from retnet.reproduce.config import ReproduceConfig
from retnet.reproduce.crew import run_cells
from retnet.reproduce.findings import Findings
from retnet.reproduce.plot import plot_findings
from retnet.reproduce.study import Ask, Study
from retnet.reproduce.texts import describe_set, passages, prepare_set, read_set

_HELD_OUT = {"num_bytes": 100_000, "length": 4_096}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a study is.

    cell: the one that has just been done, with its record; None at the beginning.
    num_done, num_cells: how many are.
    """

    cell: Cell | None
    record: Record | None
    num_done: int
    num_cells: int


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """A study that is done. files: what was written; notes: what could not be."""

    findings: Findings
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def reproduce(
    config: ReproduceConfig, study: Study, *, report: Callable[[Standing], object]
) -> Reproduced:
    """Measure what is missing of a study, and write its findings.

    The results are in `out/budget`: STUDY.json, STUDY.md and STUDY.png, and a file for each cell in
    "cells", which other studies may share. An interrupted study goes on where it stopped.

    Raises ValueError for data sets that aren't there and cells that were measured with other
    settings, StoppedError after a signal; what was done is kept.
    """
    data, out = Path(config.data), Path(config.out) / config.budget
    texts = out / "texts"
    ask = Ask(
        budget=config.budget,
        seeds=range(config.seeds),
        describe=cache(partial(describe_set, data=data)),
        checkpoints=tuple(name for name in (config.models or "").split(",") if name),
    )
    cells, folder = study.cells(ask), CellFolder(out / "cells")
    missing = [cell for cell in cells if folder.read(cell) is None]
    report(Standing(cell=None, record=None, num_done=0, num_cells=len(cells)))
    for name, held_out in study.texts(ask) if missing else ():
        size = {"small": 1, "paper": 1, "smoke": 50}[config.budget]
        excerpt = passages(
            read_set(held_out, data), **{key: each // size for key, each in _HELD_OUT.items()}
        )
        prepare_set(name, excerpt, data, texts)

    def place(path: Path, count: int) -> Place:
        return Place(folder=path, data=data, texts=texts, device=config.device, threads=count)

    records: dict[str, Record] = {}
    written = None
    for cell, record in run_cells(
        cells, folder, place, jobs=config.jobs, num_threads=torch.get_num_threads()
    ):
        records[cell.key] = record
        written = _write(config, study, ask, cells, records, out) or written
        report(Standing(cell=cell, record=record, num_done=len(records), num_cells=len(cells)))
    if written is None:
        raise ValueError(f"{config.study} has nothing to measure: {len(cells)} cells")
    return written


def _write(
    config: ReproduceConfig,
    study: Study,
    ask: Ask,
    cells: list[Cell],
    records: dict[str, Record],
    out: Path,
) -> Reproduced | None:
    findings = study.find(ask, records)
    if findings is None:
        return None
    names = {each: out / f"{config.study}.{each}" for each in ("json", "md", "png")}
    lines = [
        *findings.markdown(),
        "",
        f"{len(records)} of {len(cells)} measurements. {_machines(records)}",
    ]
    values = {
        "study": config.study,
        "settings": {**asdict(config), "data": None, "out": None},
        "retnet": __version__,
        "machine": machine_facts(),
        "findings": findings.to_dict(),
        "cells": {cell.key: records[cell.key].to_dict() for cell in cells if cell.key in records},
        "missing": [cell.key for cell in cells if cell.key not in records],
    }
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    replace_files(
        {
            names["json"]: lambda path: path.write_text(text, encoding="utf-8"),
            names["md"]: lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"),
        }
    )
    try:
        replace_files({names["png"]: lambda path: plot_findings(findings, path)})
    except ImportError as error:
        files = (names["json"], names["md"])
        return Reproduced(findings=findings, files=files, notes=(f"no picture: {error}",))
    return Reproduced(findings=findings, files=tuple(names.values()), notes=())


def _machines(records: dict[str, Record]) -> str:
    """On what the measurements were made."""

    def machine(facts: dict[str, Any]) -> str:
        return (
            f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, "
            f"Python {facts['python']}, retnet {facts['retnet']}"
        )

    found = dict.fromkeys(machine(record.machine) for record in records.values())
    return f"Measured on: {'; '.join(found)}."
