"""What a person sees of a run: a live bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.segment import Segment
from rich.table import Column

_LINE_EVERY_S = 10.0
_GAP = "  "


class Measurement(NamedTuple):
    """Where a run is. num_steps and left_s are None while its length is still being measured.

    memory_bytes: the most that this process has held, on the GPU where it computes on one; None
        where the system doesn't tell.
    """

    step: int
    num_steps: int | None
    loss_nats: float
    bits_per_byte: float
    learning_rate: float
    gradient_norm: float
    tokens_per_s: float
    memory_bytes: int | None
    left_s: float | None


class Reporter:
    """Shows a run on a console; without one it shows nothing."""

    def __init__(self, console: Console | None) -> None:
        self.console = Console(quiet=True) if console is None else console
        self._progress = _Progress(self.console)
        self._training: TaskID = self._progress.add_task("training", total=None, left="", done="")
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
        encoding = self.console.encoding
        writable = text.encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(writable, highlight=False, markup=False, soft_wrap=True)
        self._last_line_s = time.monotonic()

    def stepped(self, step: int, num_steps: int | None) -> None:
        """Move the bar: so many steps are done."""
        done = f"{step:,}" if num_steps is None else f"{step:,}/{num_steps:,}"
        self._progress.update(self._training, completed=step, total=num_steps, done=done)

    def measured(self, now: Measurement) -> None:
        """Show where the run is: under the bar, or as a line if none came for some seconds."""
        figures, left = _figures(now), _left(now)
        self.stepped(now.step, now.num_steps)
        self._progress.show(figures)
        self._progress.update(self._training, left=left)
        if self._progress.disable and time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            step = f"step {now.step:,}" + (f"/{now.num_steps:,}" if now.num_steps else "")
            self.line(f"{step}: {_GAP.join([*figures, left])}")

    def sampled(self, step: int, prompt: str, text: str) -> None:
        """Show how the model continues a prompt, in one line whatever it writes."""
        self.line(f"step {step:,}: {prompt!r} goes on {text!r}")

    def validating(self, num_tokens: int) -> TaskID:
        """Show a bar of a validation; `validated` moves it, `validation_ended` ends it."""
        return self._progress.add_task("validating", total=num_tokens, left="", done="0 %")

    def validated(self, validation: TaskID, num_tokens: int) -> None:
        """Some more tokens were read."""
        self._progress.advance(validation, num_tokens)
        task = next(task for task in self._progress.tasks if task.id == validation)
        self._progress.update(validation, done=f"{task.percentage:.0f} %")

    def validation_ended(self, validation: TaskID) -> None:
        """Take a validation's bar away."""
        self._progress.remove_task(validation)


class _Progress(Progress):
    """Bars, and below them a line of figures."""

    def __init__(self, console: Console) -> None:
        self._figures = _Figures(())
        whole = Column(no_wrap=True)
        super().__init__(
            TextColumn("{task.description}", table_column=whole),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            TextColumn("{task.fields[done]}", table_column=whole),
            TextColumn(" {task.fields[left]}", table_column=whole),
            console=console,
            disable=not console.is_interactive,
            transient=True,
            expand=True,
        )

    def show(self, figures: Sequence[str]) -> None:
        """Have other figures below the bars."""
        self._figures = _Figures(figures)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from the top."""
        yield from super().get_renderables()
        yield self._figures


class _Figures:
    """As many figures as there is room for in a line; the first matter most."""

    def __init__(self, figures: Sequence[str]) -> None:
        self._figures = figures

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self._figures)
        while len(_GAP.join(shown)) > options.max_width:
            shown.pop()
        if shown:
            yield Segment(_GAP.join(shown))


def _figures(now: Measurement) -> list[str]:
    """What was measured, the most telling first: for most runs they fit into 80 columns."""
    figures = [
        f"loss {now.loss_nats:.3f}",
        f"{now.bits_per_byte:.3f} bits/byte",
        f"{now.tokens_per_s:,.0f} tokens/s",
        f"lr {now.learning_rate:.2e}",
        f"grad {now.gradient_norm:.2f}",
    ]
    if now.memory_bytes is not None:
        figures.append(f"{now.memory_bytes / 1e9:.2f} GB")
    return figures


def _left(now: Measurement) -> str:
    return "measuring the speed" if now.left_s is None else f"{_minutes(now.left_s)} left"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
