"""`retnet reproduce`."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import TYPE_CHECKING, get_type_hints

from jsonargparse import ArgumentParser

from retnet.allocator import tune_allocator
from retnet.commands.flags import (
    Command,
    UsageError,
    Values,
    add_flag,
    attribute_texts,
    naming_flags,
)
from retnet.config import nearest
from retnet.reproduce.config import ABOUT, STUDY_NAMES, ReproduceConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from retnet.reproduce.run import Reproduced, Standing

_NAMES = tuple(field.name for field in fields(ReproduceConfig) if field.name != "study")
_METAVARS = {"data": "DIR", "out": "DIR", "models": "DIR,..."}


def _add_flags(parser: ArgumentParser) -> None:
    text = f"{', '.join(STUDY_NAMES)}; without a NAME, what each of them is"
    parser.add_argument("study", nargs="?", type=str, metavar="NAME", help=text)
    texts, kinds = attribute_texts(ReproduceConfig), get_type_hints(ReproduceConfig)
    for name in _NAMES:
        default = getattr(ReproduceConfig, name)
        add_flag(
            parser,
            name,
            kinds[name],
            default,
            texts[name].removesuffix("."),
            _METAVARS.get(name),
        )
    add_flag(parser, "threads", int | None, None, "CPU threads; by default torch's choice")


def _run(values: Values) -> int:
    name = values["study"]
    if name is None:
        sys.stdout.write("".join(f"{each:<9} {about}\n" for each, about in ABOUT.items()))
        return 0
    if name not in STUDY_NAMES:
        hint = nearest(name, STUDY_NAMES)
        raise UsageError(f"there is no study {name!r}{hint}; there are {', '.join(STUDY_NAMES)}")
    if values["threads"] is not None and values["threads"] < 1:
        raise UsageError(f"--threads must be at least 1, got {values['threads']}")
    with naming_flags({each: f"--{each}" for each in _NAMES}):
        config = ReproduceConfig(study=name, **{each: values[each] for each in _NAMES})
    return _reproduce(config, values["threads"])


def _reproduce(config: ReproduceConfig, num_threads: int | None) -> int:
    from rich.console import Console

    from retnet.device import threads
    from retnet.reproduce.cells import StoppedError
    from retnet.reproduce.run import reproduce
    from retnet.reproduce.studies import STUDIES

    console = Console(highlight=False)
    tune_allocator()
    start = time.monotonic()
    try:
        with _terminated_as_interrupted(), threads(num_threads), _progress(console) as report:
            done = reproduce(config, STUDIES[config.study], report=report)
    except (KeyboardInterrupt, StoppedError):
        console.print("stopped; what was measured is kept: the same command goes on from there")
        return 130
    _show(console, done, time.monotonic() - start)
    return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Inside, SIGTERM is as Ctrl-C: processes that were started here end with this one."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(console: "Console") -> "Iterator[Callable[[Standing], None]]":
    """A bar on a terminal, and a line for each cell."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    with Progress(
        "measuring",
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None)

        def report(now: "Standing") -> None:
            bar.update(task, completed=now.num_done, total=now.num_cells)
            if now.cell is not None and now.record is not None:
                line = f"{now.num_done}/{now.num_cells} {now.cell.key}: {now.record.seconds:,.0f} s"
                console.print(line, style="dim", soft_wrap=True)

        yield report


def _show(console: "Console", done: "Reproduced", seconds: float) -> None:
    from rich.table import Table

    for table in done.findings.tables:
        shown = Table(title=table.title, title_justify="left")
        for index, heading in enumerate(table.columns):
            shown.add_column(heading, justify="right" if index else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for check in done.findings.checks:
        console.print(f"{'yes' if check.holds else 'no ':<3} {check.claim}: {check.value}")
    for note in (*done.findings.notes, *done.notes):
        console.print(note, style="dim")
    console.print(f"{seconds:,.0f} s; written: {', '.join(map(str, done.files))}", soft_wrap=True)


COMMAND = Command(
    summary="measure the paper's tables and figures here, beside its own numbers",
    usage="NAME [--budget smoke|small|paper] [--data DIR] [--out DIR] [flags]",
    details="NAME is a table or figure of the paper, or a study of its kind. What was measured "
    "before is kept, and an interrupted study goes on; docs/evidence.md has results.",
    add_flags=_add_flags,
    run=_run,
)
