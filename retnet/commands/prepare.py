"""`retnet prepare`."""

import shlex
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, get_type_hints

from jsonargparse import ArgumentParser

from retnet.commands.flags import (
    Command,
    UsageError,
    Values,
    add_flag,
    attribute_texts,
    naming_flags,
)
from retnet.commands.terminal import bytes_text, showing_log
from retnet.data.prepare.config import NAMES, PrepareConfig

if TYPE_CHECKING:
    from rich.console import Console

    from retnet.data.prepare.run import Prepared, Progress
    from retnet.data.shards import Shard
_METAVARS = {
    "out": "DIR",
    "tokenizer": "PATH",
    "eos_token": "TOKEN",
    "text_field": "NAME",
    "split": "NAME",
    "split_on": "REGEX",
    "validation": "SOURCE",
    "validation_split": "NAME",
}
_LINE_EVERY_S = 10.0


def _add_flags(parser: ArgumentParser) -> None:
    texts, kinds = attribute_texts(PrepareConfig), get_type_hints(PrepareConfig)
    parser.add_argument(
        "sources",
        type=str,
        nargs="*",
        default=[],
        metavar="SOURCE",
        help=texts["sources"].removesuffix("."),
    )
    for name in NAMES:
        text = texts[name].removesuffix(".")
        if kinds[name] is bool:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        elif name != "sources":
            default = getattr(PrepareConfig, name)
            add_flag(parser, name, kinds[name], default, text, _METAVARS.get(name))
    text = "read all tokens in a folder, compare them with their checksums, and end"
    add_flag(parser, "verify", str | None, None, text, "DIR")


def _run(values: Values) -> int:
    if values["verify"] is not None:
        if values["sources"]:
            raise UsageError("--verify DIR checks what is there; it takes no SOURCE")
        return _verify(values["verify"])
    if not values["sources"]:
        raise UsageError("name what to prepare: retnet prepare SOURCE ... --out DIR")
    flags = {name: f"--{name}" for name in NAMES if name != "sources"}
    with naming_flags(flags):
        config = PrepareConfig(**{name: values[name] for name in NAMES})
        return _prepare(config)


def _prepare(config: PrepareConfig) -> int:
    from rich.console import Console

    from retnet.data.prepare.run import prepare

    console = Console(highlight=False)
    started_s = time.monotonic()
    try:
        with showing_log(console), _Shown(console) as shown:
            done = prepare(config, report=shown.show)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from the shards that are complete")
        return 130
    for line in _summary(done, time.monotonic() - started_s):
        console.print(line, soft_wrap=True, markup=False)
    return 0


def _verify(directory: str) -> int:
    from rich.console import Console

    from retnet.data.prepare.run import Progress
    from retnet.data.shards import DTYPES, read_header, verify

    console = Console(highlight=False)
    header = read_header(directory)
    shards = (*header.train, *header.validation)
    total = sum(shard.num_tokens for shard in shards) * DTYPES[header.dtype].itemsize
    read = 0
    with _Shown(console) as shown:

        def progress(size: int) -> None:
            nonlocal read
            read += size
            shown.show(Progress("verifying", min(read, total), total))

        verify(directory, progress)
    console.print(f"{directory}: {len(shards)} shards are as they were written", markup=False)
    return 0


class _Shown:
    """Shows the progress: as a bar on a terminal, as a line now and then elsewhere."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", visible=False)
        self._stage = ""
        self._began_s = self._last_s = time.monotonic()

    def __enter__(self) -> "_Shown":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, now: "Progress") -> None:
        """Where the work is."""
        if now.stage != self._stage:
            self._stage = now.stage
            self._began_s = self._last_s = time.monotonic()
            self._bar.remove_task(self._task)
            # What was read before counts for the bar, but not for the speed.
            self._task = self._bar.add_task(now.stage, completed=now.before_bytes)
        read = now.before_bytes + now.read_bytes
        self._bar.update(self._task, completed=read, total=now.total_bytes)
        if self._bar.disable and time.monotonic() - self._last_s >= _LINE_EVERY_S:
            self._last_s = time.monotonic()
            line = _progress_line(now, self._last_s - self._began_s)
            self._console.print(line, markup=False, soft_wrap=True)


def _progress_line(now: "Progress", elapsed_s: float) -> str:
    speed = now.read_bytes / max(1e-9, elapsed_s)
    read = now.before_bytes + now.read_bytes
    of_all = "" if now.total_bytes is None else f" of {bytes_text(now.total_bytes)}"
    text = f"{now.stage}: {bytes_text(read)}{of_all}, {bytes_text(speed)}/s"
    if now.total_bytes is not None and speed:
        text += f", {_minutes((now.total_bytes - read) / speed)} left"
    return text


def _summary(done: "Prepared", elapsed_s: float) -> Iterator[str]:
    header = done.header
    place = shlex.quote(str(done.out))
    if done.was_complete:
        yield f"{place} was complete already."
    else:
        read = sum(shard.num_bytes for shard in (*header.train, *header.validation))
        speed = bytes_text(read / max(1e-9, elapsed_s))
        yield f"{place}: {_minutes(elapsed_s)}, {speed} of text a second"
    yield f"  train       {_amounts(header.train)}"
    yield f"  validation  {_amounts(header.validation)}"
    left_out = header.source.get("left_out", {})
    if left_out:
        counts = (f"{count:,} {reason}" for reason, count in left_out.items())
        yield f"  left out    documents: {', '.join(counts)}"
    yield f"  vocabulary  {header.vocab_size:,} ids, {header.dtype}"
    vocabulary = "" if header.tokenizer == "bytes" else f" --model.vocab_size {header.vocab_size}"
    yield f"Train on it: retnet train --train.data {place}{vocabulary}"


def _amounts(shards: "tuple[Shard, ...]") -> str:
    tokens, documents, size = (
        sum(getattr(shard, name) for shard in shards)
        for name in ("num_tokens", "num_documents", "num_bytes")
    )
    counts = (_count(tokens, "token"), _count(documents, "document"))
    return f"{', '.join(counts)}, {bytes_text(size)} of text, {_count(len(shards), 'shard')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


COMMAND = Command(
    summary="make text into tokens that training maps into memory",
    usage="SOURCE ... [--out DIR] [flags], or --verify DIR",
    details="Interrupted and started again, the same command goes on from the shards that are "
    "complete; the result is the same however often that happens, and whatever the workers. "
    "docs/data.md has examples, and describes what is written.",
    add_flags=_add_flags,
    run=_run,
)
