"""What a person sees of a run: a live bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_LINE_EVERY_S = 10.0


class Measurement(NamedTuple):
    """Where a run is. num_steps and left_s are None while its length is still being measured."""

    step: int
    num_steps: int | None
    loss_nats: float
    bits_per_byte: float
    tokens_per_s: float
    left_s: float | None


class Reporter:
    """Shows a run on a console; without one it shows nothing."""

    def __init__(self, console: Console | None) -> None:
        self.console = Console(quiet=True) if console is None else console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._training: TaskID = self._progress.add_task("training", total=None, status="")
        self._last_line_s = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._last_line_s = time.monotonic()

    def measured(self, now: Measurement) -> None:
        """Show where the run is: in the bar, or as a line if none came for some seconds."""
        status = _status(now)
        self._progress.update(
            self._training, completed=now.step, total=now.num_steps, status=status
        )
        if self._progress.disable and time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self.line(f"step {now.step:,}: {status}")

    def validating(self, num_bytes: int) -> TaskID:
        """Show a bar of a validation's bytes; `validated` moves it, `validation_ended` ends it."""
        return self._progress.add_task("validating", total=num_bytes, status="")

    def validated(self, validation: TaskID, num_bytes: int) -> None:
        """Some more bytes were read."""
        self._progress.advance(validation, num_bytes)

    def validation_ended(self, validation: TaskID) -> None:
        """Take a validation's bar away."""
        self._progress.remove_task(validation)


def _status(now: Measurement) -> str:
    left = "measuring the speed" if now.left_s is None else f"{_minutes(now.left_s)} left"
    losses = f"loss {now.loss_nats:.3f}  {now.bits_per_byte:.3f} bits per byte"
    return f"{losses}  {now.tokens_per_s:,.0f} tokens/s  {left}"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
