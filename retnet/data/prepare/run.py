"""Prepares text for training: from what a `PrepareConfig` names to a folder of tokens."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from retnet.data.prepare.config import PrepareConfig
from retnet.data.prepare.finish import again_name, limited, parts_of, publish, to_divide_anew
from retnet.data.prepare.folder import WorkFolder
from retnet.data.prepare.inputs import Input, sum_of_known
from retnet.data.prepare.plan import Plan, make_plan
from retnet.data.prepare.sources import Finder, digest, make_division
from retnet.data.prepare.tokenizing import find_tokenizer, train_tokenizer, write_tokenizer
from retnet.data.prepare.units import Part, Unit
from retnet.data.prepare.workers import Crew
from retnet.data.shards import Header
from retnet.data.tokenizer import TOKENIZER_FILE

_WORTH_A_PROCESS_BYTES = 8_000_000

_logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """How far a preparation is.

    stage: what is done, in words; read_bytes: of the input, by this call; total_bytes: of all of
    it, where that is known; before_bytes: what had been read before an interruption.
    """

    stage: str
    read_bytes: int
    total_bytes: int | None
    before_bytes: int = 0


Report = Callable[[Progress], object]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Tokens that are ready.

    Attributes:
        out: their folder.
        header: what it holds.
        was_complete: whether that was there before.
    """

    out: Path
    header: Header
    was_complete: bool


def prepare(config: PrepareConfig, *, report: Report = lambda _: None) -> Prepared:
    """Make a folder of tokens; what an interrupted call with the same configuration did is kept.

    With several workers, call it in a program that may be loaded again, under
    `if __name__ == "__main__":`. Raises ValueError for input and settings that don't do, and
    OSError where the disk does not; the shards that were complete then stay so.
    """
    work = WorkFolder(config.out)
    work.require_ours()
    files = find_tokenizer(config)
    plan = _plan(config, report)
    source = {"settings": config.settings(), "tokenizer": files and digest(files)}
    made_before = work.finished({**source, "inputs": digest(plan.inputs)})
    if made_before is not None:
        return Prepared(out=work.out, header=made_before, was_complete=True)
    with work.locked():
        work.begin({**source, "inputs": plan.inputs})
        _provide_tokenizer(config, work, files, plan, report)
        header = _prepare(config, work, plan, report, {**source, "inputs": digest(plan.inputs)})
    work.delete()
    return Prepared(out=work.out, header=header, was_complete=False)


def _plan(config: PrepareConfig, report: Report) -> Plan:
    report(Progress("looking at the input", 0, None))
    division = make_division(config.split_on, config.separator)

    def find(sources: Sequence[str], split: str) -> list[Input]:
        out = Path(config.out)
        finder = Finder(text_field=config.text_field, split=split, division=division, leave_out=out)
        return finder.find(sources)

    inputs = find(config.sources, config.split)
    given = config.validation
    validation = None if given is None else find([given], config.validation_split)
    return make_plan(config, inputs, validation)


def _provide_tokenizer(
    config: PrepareConfig,
    work: WorkFolder,
    files: dict[str, bytes] | None,
    plan: Plan,
    report: Report,
) -> None:
    """Put the tokenizer's files where the processes find them."""
    if config.train_bpe is None:
        write_tokenizer(work.tokenizer, files)
    elif not (work.tokenizer / TOKENIZER_FILE).is_file():
        stage, num_bytes = "training a tokenizer", config.bpe_sample_bytes
        report(Progress(stage, 0, None))
        _logger.info(
            "%s of %d tokens; %d bytes of text at most", stage, config.train_bpe, num_bytes
        )
        size = train_tokenizer(
            work.tokenizer, plan.train, size=config.train_bpe, num_bytes=num_bytes
        )
        if size < config.train_bpe:
            _logger.info("the text has only %d tokens to learn, fewer than train_bpe", size)


def _prepare(
    config: PrepareConfig, work: WorkFolder, plan: Plan, report: Report, source: dict[str, Any]
) -> Header:
    reading = _Reading(report, [*plan.validation, *plan.train], most_bytes=config.max_bytes)
    with Crew(num_workers(config, plan), work.path, work.tokenizer) as crew:
        validation = _done(plan.validation, work, crew, reading)
        keys = (key for part in parts_of(validation) for key in part.keys)
        crew.leave_out(frozenset(map(bytes.fromhex, keys)))
        train = _done(plan.train, work, crew, reading, config.max_bytes)
        train = limited(train, config.max_bytes)
        if not validation and train:
            anew = to_divide_anew(train)
            reading = _Reading(report, anew, stage="dividing anew")
            again = {unit.name: unit for unit in _done(anew, work, crew, reading)}
            train = tuple(again.get(again_name(unit), unit) for unit in train)
    report(Progress("putting the shards in their places", 0, None))
    return publish(work, train, validation, crew.encoder, source)


def _done(
    units: Sequence[Unit],
    work: WorkFolder,
    crew: Crew,
    reading: "_Reading",
    most_bytes: int | None = None,
) -> tuple[Unit, ...]:
    """Units after they were done; only the first where these have enough text."""
    found = [work.with_done(unit) for unit in units]
    parts = {unit.name: unit.done for unit in found if unit.is_done}
    for unit in found:
        if unit.is_done:
            reading.skip(unit)

    def is_enough() -> bool:
        if most_bytes is None:
            return False
        first = takewhile(lambda unit: unit.name in parts, units)
        text = sum(part.num_bytes for unit in first for part in parts[unit.name])
        return text >= most_bytes

    def end(unit: Unit, done: tuple[Part, ...]) -> bool:
        parts[unit.name] = done
        reading.end(unit)
        return is_enough()

    if not is_enough():
        crew.do([unit for unit in found if not unit.is_done], reading.advance, end)
    return tuple(replace(unit, done=parts.get(unit.name, ())) for unit in units)


class _Reading:
    """Reports what was read of some units."""

    def __init__(
        self,
        report: Report,
        units: Sequence[Unit],
        *,
        stage: str = "preparing",
        most_bytes: int | None = None,
    ) -> None:
        total = sum_of_known(unit.num_bytes for unit in units)
        bounds = [size for size in (total, most_bytes) if size is not None]
        self._total = min(bounds, default=None)
        self._report, self._stage = report, stage
        self._of_unit: dict[str, int] = {}
        self._before = self._read = 0

    def skip(self, unit: Unit) -> None:
        """A unit was done before."""
        size = unit.num_bytes or 0
        self._before += size
        self._show()

    def advance(self, unit: Unit, size: int) -> None:
        """Some more bytes of a unit were read."""
        before = self._of_unit.get(unit.name, 0)
        self._of_unit[unit.name] = before + size
        self._add(self._within(unit, before + size) - self._within(unit, before))

    def end(self, unit: Unit) -> None:
        """A unit is done."""
        read = self._within(unit, self._of_unit.get(unit.name, 0))
        self._add((read if unit.num_bytes is None else unit.num_bytes) - read)

    def _add(self, size: int) -> None:
        self._read += size
        self._show()

    def _show(self) -> None:
        self._report(Progress(self._stage, self._read, self._total, self._before))

    @staticmethod
    def _within(unit: Unit, size: int) -> int:
        """What a unit reads beyond its own end counts for others."""
        return size if unit.num_bytes is None else min(size, unit.num_bytes)


def num_workers(config: PrepareConfig, plan: Plan) -> int:
    """How many processes are worth starting.

    Where none are asked for, no more than have some MB to do each. Where the text is limited, no
    more than there are units needed for it: what others do would be thrown away.
    """
    sizes = [unit.expected_bytes for unit in plan.train]
    total = sum_of_known(sizes)
    if config.workers is not None:
        count = config.workers
    elif total is None:
        count = available_cores()
    else:
        count = min(available_cores(), max(1, total // _WORTH_A_PROCESS_BYTES))
    if config.max_bytes is None:
        return count
    needed, text = 0, 0.0
    for size in sizes:
        if text < config.max_bytes:
            needed, text = needed + 1, text + (inf if size is None else size)
    return min(count, needed)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
