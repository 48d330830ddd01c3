import io
import re

import pytest
from rich.console import Console

from retnet.train import report
from retnet.train.report import Measurement, Reporter

NOW = Measurement(
    step=40,
    num_steps=100,
    loss_nats=1.5,
    bits_per_byte=2.164,
    learning_rate=4e-3,
    gradient_norm=0.531,
    tokens_per_s=12345.6,
    memory_bytes=1_234_000_000,
    left_s=75.0,
)
EARLY = NOW._replace(num_steps=None, left_s=None)
FIGURES = "loss 1.500  2.164 bits/byte  12,346 tokens/s  lr 4.00e-03  grad 0.53  1.23 GB"


def shown(
    is_terminal: bool, *, width: int = 120, encoding: str = "utf-8"
) -> tuple[Console, io.TextIOWrapper]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=file, force_terminal=is_terminal, width=width, color_system=None)
    return console, file


def text_of(file: io.TextIOWrapper) -> str:
    file.seek(0)
    return file.read()


def frames(now: Measurement, width: int) -> list[str]:
    """The lines that a bar is made of, without what moves a terminal's cursor."""
    console, file = shown(is_terminal=True, width=width)
    with Reporter(console) as reporter:
        reporter.measured(now)
        reporter._progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", text_of(file)).replace("\r", "\n")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_a_terminal_gets_a_bar() -> None:
    console, file = shown(is_terminal=True)
    with Reporter(console) as reporter:
        reporter.measured(EARLY)
        reporter._progress.refresh()
        reporter.measured(NOW)
        reporter.stepped(43, 100)
        reporter._progress.refresh()
        bar = reporter.validating(1000)
        reporter.validated(bar, 500)
        reporter._progress.refresh()
        reporter.validation_ended(bar)
    text = text_of(file)
    assert FIGURES in text
    assert "measuring the speed" in text
    assert re.search(r"training +━+ +43/100  1:15 left", text)
    assert re.search(r"validating ━+╸? +50 %", text)


@pytest.mark.parametrize("width", [120, 80])
def test_it_fits_the_usual_terminals(width: int) -> None:
    """Everything in two lines, also late in a long and fast run."""
    late = NOW._replace(
        step=123_456, num_steps=1_234_567, tokens_per_s=1_234_567.0, left_s=123_456.0
    )
    bar, figures = frames(late, width)[-2:]
    assert bar.startswith("training ━")
    assert bar.endswith("123,456/1,234,567  34:17:36 left")
    assert figures == FIGURES.replace("12,346", "1,234,567")
    assert len(bar) <= width
    assert len(figures) <= width


def test_what_matters_least_is_left_out_where_there_is_no_room() -> None:
    assert frames(NOW, 50)[-1] == "loss 1.500  2.164 bits/byte  12,346 tokens/s"
    assert frames(NOW, 15)[-1] == "loss 1.500"
    assert all(len(line) <= 5 for line in frames(NOW, 5))


def test_memory_that_is_not_known_is_not_shown() -> None:
    assert frames(NOW._replace(memory_bytes=None), 120)[-1].endswith("grad 0.53")


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = shown(is_terminal=False)
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    with Reporter(console) as reporter:
        for _ in range(3):
            reporter.measured(NOW)
    assert text_of(file) == f"step 40/100: {FIGURES}  1:15 left\n"


def test_a_terminal_that_can_do_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console, file = shown(is_terminal=True)
    with Reporter(console) as reporter:
        reporter._last_line_s -= 20
        reporter.measured(EARLY)
    assert text_of(file) == f"step 40: {FIGURES}  measuring the speed\n"


def test_long_lines_are_not_broken_in_a_log() -> None:
    console, file = shown(is_terminal=False)
    with Reporter(console) as reporter:
        reporter.line("x" * 300)
    assert "x" * 300 in text_of(file)


def test_a_sample_is_one_line_whatever_was_written() -> None:
    """A model of bytes writes what would move a cursor, or is of no use to a log in ASCII."""
    console, file = shown(is_terminal=True, encoding="ascii")
    with Reporter(console) as reporter:
        reporter.sampled(40, "a\n", "\x1b[2J\nüß [bold]")
    assert r"step 40: 'a\n' goes on '\x1b[2J\n\xfc\xdf [bold]'" in text_of(file)


def test_without_a_console_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(None) as reporter:
        reporter.line("text")
        reporter.stepped(1, None)
        reporter.measured(NOW)
        reporter.validation_ended(reporter.validating(10))
    assert capsys.readouterr() == ("", "")
