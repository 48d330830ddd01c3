import io

import pytest
from rich.console import Console

from retnet.train import report
from retnet.train.report import Measurement, Reporter

NOW = Measurement(
    step=40, num_steps=100, loss_nats=1.5, bits_per_byte=2.164, tokens_per_s=12345.6, left_s=75.0
)
EARLY = NOW._replace(num_steps=None, left_s=None)


def shown(is_terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=is_terminal, width=120, color_system=None), file


def test_a_terminal_gets_a_bar() -> None:
    console, file = shown(is_terminal=True)
    with Reporter(console) as reporter:
        reporter.measured(EARLY)
        reporter._progress.refresh()
        reporter.measured(NOW)
        reporter._progress.refresh()
        bar = reporter.validating(1000)
        reporter.validated(bar, 500)
        reporter._progress.refresh()
        reporter.validation_ended(bar)
    text = file.getvalue()
    assert "loss 1.500  2.164 bits per byte  12,346 tokens/s  1:15 left" in text
    assert "measuring the speed" in text
    assert "validating" in text


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = shown(is_terminal=False)
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    with Reporter(console) as reporter:
        for _ in range(3):
            reporter.measured(NOW)
    assert file.getvalue().count("step 40: loss 1.500") == 1


def test_long_lines_are_not_broken_in_a_log() -> None:
    console, file = shown(is_terminal=False)
    with Reporter(console) as reporter:
        reporter.line("x" * 300)
    assert "x" * 300 in file.getvalue()


def test_without_a_console_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(None) as reporter:
        reporter.line("text")
        reporter.measured(NOW)
        reporter.validation_ended(reporter.validating(10))
    assert capsys.readouterr() == ("", "")
