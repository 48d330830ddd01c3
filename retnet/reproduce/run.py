"""Runs a study: what is missing is measured, and the tables are written anew after every cell."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retnet import __version__
from retnet.checkpoint.files import replace_files
from retnet.reproduce.cells import Cell, CellFolder, Place, Record
from retnet.reproduce.config import ReproduceConfig
from retnet.reproduce.crew import run_cells
from retnet.reproduce.findings import Findings
from retnet.reproduce.plot import plot_findings
from retnet.reproduce.study import Ask, Study
from retnet.reproduce.texts import prepare_text


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

    The results are in `out/budget`: STUDY.json and STUDY.md, written anew after every measurement,
    STUDY.png, drawn at the end, and a file for each cell in "cells", which other studies may share.
    An interrupted study goes on where it stopped.

    Raises ValueError for data sets that aren't there, cells that were measured with other settings
    and those that can't be measured, StoppedError after a signal; what was done is kept.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a study is one process, got several from torchrun; pass --jobs instead")
    data, out = Path(config.data), Path(config.out) / config.budget
    ask = Ask(
        budget=config.budget,
        seeds=range(config.seeds),
        data=data,
        checkpoints=tuple(name for name in (config.models or "").split(",") if name),
    )
    cells, folder = study.cells(ask), CellFolder(out / "cells")
    if len({cell.key for cell in cells}) < len(cells):
        raise ValueError(f"{config.study} would measure one thing twice; name each checkpoint once")
    found = {cell.key: folder.read(cell) for cell in cells}
    records = {key: record for key, record in found.items() if record is not None}
    missing = [cell for cell in cells if cell.key not in records]
    if missing:
        for text in study.texts(ask):
            prepare_text(text, data, out / "texts")

    def place(path: Path, count: int) -> Place:
        return Place(
            folder=path, data=data, texts=out / "texts", device=config.device, threads=count
        )

    def status(cell: Cell | None, record: Record | None) -> Standing:
        return Standing(cell=cell, record=record, num_done=len(records), num_cells=len(cells))

    report(status(None, None))
    findings = _write(config, study, ask, cells, records, out)
    notes: tuple[str, ...] = ()
    try:
        for cell, record in run_cells(
            missing, folder, place, jobs=config.jobs, num_threads=torch.get_num_threads()
        ):
            records[cell.key] = record
            findings = _write(config, study, ask, cells, records, out) or findings
            report(status(cell, record))
    finally:
        if findings is not None:
            notes = _draw(findings, out / f"{config.study}.png")
    if findings is None:
        raise ValueError(f"{config.study} found nothing in its {len(cells)} measurements")
    kinds = ("json", "md") if notes else ("json", "md", "png")
    files = tuple(out / f"{config.study}.{kind}" for kind in kinds)
    return Reproduced(findings=findings, files=files, notes=notes)


def _write(
    config: ReproduceConfig,
    study: Study,
    ask: Ask,
    cells: list[Cell],
    records: dict[str, Record],
    out: Path,
) -> Findings | None:
    """Write the tables of what is known, if they say something."""
    findings = study.find(ask, records)
    if findings is None:
        return None
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        *findings.markdown(),
        "",
        f"{len(records)} of {len(cells)} measurements. {_machines(records)}",
    ]
    values = {
        "study": config.study,
        "budget": config.budget,
        "seeds": config.seeds,
        "retnet": __version__,
        "findings": findings.to_dict(),
        "cells": {cell.key: records[cell.key].to_dict() for cell in cells if cell.key in records},
        "missing": [cell.key for cell in cells if cell.key not in records],
    }
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    told = "\n".join(lines) + "\n"
    replace_files(
        {
            out / f"{config.study}.json": lambda path: path.write_text(text, encoding="utf-8"),
            out / f"{config.study}.md": lambda path: path.write_text(told, encoding="utf-8"),
        }
    )
    return findings


def _draw(findings: Findings, image: Path) -> tuple[str, ...]:
    """Draw the picture, which a study is worth more than; what to say where that can't be done."""
    try:
        replace_files({image: lambda path: plot_findings(findings, path)})
    except ImportError as error:
        return (f"no picture: {error}",)
    return ()


def _machines(records: dict[str, Record]) -> str:
    """On what the measurements were made, with which code."""

    def machine(facts: dict[str, Any]) -> str:
        return (
            f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, "
            f"Python {facts['python']}"
        )

    every = [record.machine for record in records.values()]
    machines = dict.fromkeys(map(machine, every))
    commits = dict.fromkeys(facts["commit"] or facts["retnet"] for facts in every)
    return f"Measured on: {'; '.join(machines)}. Code: {', '.join(commits)}."
