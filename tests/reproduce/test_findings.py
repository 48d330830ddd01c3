"""How findings are told."""

import pytest

from retnet.reproduce.findings import Check, Findings, Line, Panel, Spread, Table, collect
from retnet.reproduce.plot import plot_findings, points


def test_spread() -> None:
    spread = Spread((1.0, 2.0, 3.0))
    assert (spread.mean, spread.deviation) == (2.0, 1.0)
    assert spread.text() == "2.000 ± 1.000"
    assert Spread((1.0, 2.0)).text(1) == "1.5 ± 0.7 (2 seeds)"


def test_a_single_run_is_no_result() -> None:
    """It is shown as what it is."""
    assert Spread((1.0,)).text(2) == "1.00 (1 seed)"
    assert Spread((1.0,)).deviation is None


def test_differences_are_paired() -> None:
    """Two models that differ from seed to seed, but not from each other, differ by nothing."""
    difference = Spread((1.0, 2.0, 3.0)).minus(Spread((1.5, 2.5, 3.5)))
    assert difference == Spread((-0.5, -0.5, -0.5))
    assert Spread((1.0, 2.0)).minus(Spread((1.0,))) is None


def test_collect() -> None:
    found = collect([("b", 1.0), ("a", 2.0), ("b", 3.0)])
    assert list(found.items()) == [("b", Spread((1.0, 3.0))), ("a", Spread((2.0,)))]


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
        "| name | x|y |",
        "|---|---:|",
        "| a | 1 |",
    ]
    assert "| b\\|c | 2 |" in lines
    assert "| one | 1.0 | yes |" in lines
    assert "| two | 3 | no |" in lines
    assert lines[-1] == "So much."


def test_picture(tmp_path: pytest.TempPathFactory) -> None:
    """Of lines, of points over names, and of a panel with nothing in it yet."""
    line = Line(name="a", x=[1, 2, 4], y=[1.0, 2.0, 3.0], spread=[0.1, 0.1, 0.0])
    panels = (
        Panel(title="lines", x_label="x", y_label="y", lines=[line], log_x=True, log_y=True),
        Panel(
            title="points", x_label="", y_label="y", lines=[points("a", [1, 2])], names=["p", "q"]
        ),
        Panel(title="nothing", x_label="x", y_label="y", lines=[]),
    )
    image = tmp_path / "a.png"  # type: ignore[operator]
    plot_findings(findings(*panels), image)
    assert image.read_bytes().startswith(b"\x89PNG")
    plot_findings(findings(), image)
