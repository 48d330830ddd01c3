"""`retnet plot`, as people call it."""

import json
import sys
from pathlib import Path

import pytest

from retnet.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs in it; the second one recorded norms."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    where = {"step": 10, "tokens": 1000, "elapsed_s": 5.0}
    record = {"kind": "train", **where, "loss_nats": 1.0, "bits_per_byte": 1.5}
    norms = {"kind": "norms", **where, "outputs": [[1.0]], "states": [[1.0]]}
    for name, records in (("first", [record]), ("second", [record, norms])):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(each) + "\n" for each in records)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "image"),
    [
        (["first"], "loss.png"),
        (["first", "second/metrics.jsonl", "--against", "hours", "--unit", "nats"], "loss.png"),
        (["--out", "both.png", "first", "second"], "both.png"),
        (["second", "--norms"], "norms.png"),
    ],
)
def test_draws(
    here: Path, arguments: list[str], image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", *arguments]) == 0
    assert capsys.readouterr().out == f"Drawn in {image}.\n"
    assert (here / image).read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_replaced_only_when_asked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "loss.png").write_text("precious")
    assert main(["plot", "first"]) == 2
    assert "loss.png is there already; pass --overwrite" in capsys.readouterr().err
    assert (here / "loss.png").read_text() == "precious"
    assert main(["plot", "first", "--overwrite"]) == 0
    assert (here / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to draw: retnet plot runs/first"),
        (["first", "nowhere"], "nowhere is not a run: it is not there"),
        (["first", "--norms"], "first holds no norms"),
        (["first", "second", "--norms"], "--norms draws one run, got 2"),
        (["first", "--against", "time"], "--against must be one of tokens, steps, hours, got"),
        (["first", "--out", "loss.doc"], "Format 'doc' is not supported (supported formats: "),
        (["first", "--out", "nowhere/loss.png"], "nowhere/loss.png: No such file"),
    ],
)
def test_refusals(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert main(["plot", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(here.iterdir()) == before


def test_without_matplotlib_the_extra_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["plot", "first"]) == 2
    assert "pip install 'retnet[plot]'" in capsys.readouterr().err
