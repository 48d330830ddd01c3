"""How findings are told."""

import pytest

from retnet.reproduce.findings import (
    Check,
    Findings,
    Line,
    Panel,
    Spread,
    Table,
    check_seeds,
    spread_line,
)
from retnet.reproduce.plot import plot_findings


def spread(*values: float, first: int = 0) -> Spread:
    return Spread(dict(enumerate(values, first)))


def test_spread() -> None:
    found = spread(1.0, 2.0, 3.0)
    assert (found.mean, found.deviation) == (2.0, 1.0)
    assert found.text() == "2.000 ± 1.000"
    assert spread(1.0, 2.0).text(1) == "1.5 ± 0.7 (2 seeds)"


def test_a_single_run_is_no_result() -> None:
    """It is shown as what it is, and nothing is concluded from it."""
    assert spread(1.0).text(2) == "1.00 (1 seed)"
    assert spread(1.0).deviation is None
    assert check_seeds("a claim", spread(1.0, 2.0), lambda value: value > 0) == []
    assert check_seeds("a claim", None, lambda value: value > 0) == []


def test_a_claim_holds_for_every_seed() -> None:
    values = spread(1.0, 2.0, 3.0)
    (check,) = check_seeds("a claim", values, lambda value: value > 0, digits=1, unit="bits")
    assert check == Check(claim="a claim", value="2.0 ± 1.0 bits", holds=True)
    (check,) = check_seeds("a claim", values, lambda value: value > 1)
    assert not check.holds


def test_differences_are_paired() -> None:
    """Two models that differ from seed to seed, but not from each other, differ by nothing."""
    difference = spread(1.0, 2.0, 3.0).minus(spread(1.5, 2.5, 3.5))
    assert difference == spread(-0.5, -0.5, -0.5)


def test_differences_are_of_common_seeds() -> None:
    assert spread(1.0, 2.0, 3.0).minus(spread(5.0, 7.0, first=1)) == spread(-3.0, -4.0, first=1)
    assert spread(1.0).minus(spread(2.0, first=1)) is None


def findings(*panels: Panel) -> Findings:
    table = Table(title="Of two", columns=["name", "x|y"], rows=[["a", "1"], ["b|c", "2"]])
    checks = [
        Check(claim="one", value="1.0", holds=True),
        Check(claim="two", value="3", holds=False),
    ]
    return Findings(title="All", tables=[table], panels=panels, checks=checks, notes=["So much."])


def test_markdown() -> None:
    lines = list(findings().markdown())
    assert lines[:7] == [
        "## All",
        "",
        "### Of two",
        "",
        "| name | x\\|y |",
        "|---|---:|",
        "| a | 1 |",
    ]
    assert "| b\\|c | 2 |" in lines
    assert "| one | 1.0 | yes |" in lines
    assert "| two | 3 | no |" in lines
    assert lines[-1] == "So much."


def test_picture(tmp_path: pytest.TempPathFactory) -> None:
    """Of lines, of points over names, and of a panel with nothing in it yet."""
    named = Line(name="a", x=[0, 1], y=[1, 2])
    line = spread_line("a", [1, 2], [spread(1.0, 2.0), spread(2.0)])
    assert line.spread == [pytest.approx(0.5**0.5), 0.0]
    panels = (
        Panel(title="lines", x_label="x", y_label="y", lines=[line], log_x=True, log_y=True),
        Panel(title="points", x_label="", y_label="y", lines=[named], names=["p", "q"]),
        Panel(title="nothing", x_label="x", y_label="y", lines=[]),
    )
    image = tmp_path / "a.png"  # type: ignore[operator]
    plot_findings(findings(*panels), image)
    assert image.read_bytes().startswith(b"\x89PNG")
    plot_findings(findings(), image)
