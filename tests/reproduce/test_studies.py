"""Every study at its smallest: all of `retnet reproduce --budget smoke`, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import retnet
from retnet.cli import main
from retnet.reproduce.config import STUDY_NAMES
from retnet.reproduce.studies import STUDIES

ROOT = Path(retnet.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
HERE = [name for name in STUDY_NAMES if name != "table3"]
# What must stand in their tables.
OF_THE_PAPER = {"table1": "O(N log N)", "table4": "6.77", "table6": "+2.0 %", "table8": "3.760"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, as cells may be shared."""
    return tmp_path_factory.mktemp("reproduce")


def reproduce(name: str, out: Path, *flags: str) -> int:
    smoke = ("--budget", "smoke", "--seeds", "1", "--threads", "1", "--out", str(out))
    return main(["reproduce", name, *smoke, *flags])


def test_every_name_has_a_study() -> None:
    assert tuple(STUDIES) == STUDY_NAMES


@pytest.mark.parametrize("name", HERE)
def test_smoke(name: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables on the screen, and in three files; a second call measures nothing."""
    assert reproduce(name, out) == 0
    shown = capsys.readouterr().out
    files = [out / "smoke" / f"{name}.{kind}" for kind in ("json", "md", "png")]
    assert all(str(file) in shown.replace("\n", "") for file in files)
    found = json.loads(files[0].read_text())
    assert found["missing"] == []
    for key, cell in found["cells"].items():
        assert json.loads((out / f"smoke/cells/{key}.json").read_text()) == cell
    text = files[1].read_text()
    for table in found["findings"]["tables"]:
        assert f"### {table['title']}" in text
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert OF_THE_PAPER.get(name, "") in text
    assert files[2].read_bytes().startswith(b"\x89PNG")
    before = {file: file.stat().st_mtime_ns for file in (out / "smoke/cells").glob("*.json")}
    assert reproduce(name, out) == 0
    assert before == {
        file: file.stat().st_mtime_ns for file in (out / "smoke/cells").glob("*.json")
    }


def test_studies_share_cells(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table 6's RetNet is table 5's."""
    for name in ("table5", "table6"):
        assert reproduce(name, out) == 0
    capsys.readouterr()
    five, six = (
        json.loads((out / f"smoke/{name}.json").read_text()) for name in ("table5", "table6")
    )
    shared = five["cells"].keys() & six["cells"].keys()
    assert shared == {"language-retnet-seed0"}


def test_without_a_name_all_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STUDY_NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table7"], "there is no study 'table7'; did you mean"),
        (["table5", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["table5", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["table5", "--threads", "0"], "--threads must be at least 1, got 0"),
        (
            ["table5", "--data", "nowhere"],
            "data set 'wikitext-2' is not at 'nowhere/wiki",
        ),
        (["table3"], "--models are checkpoints for table3 and for no other study, got None"),
        (["table5", "--models", "x"], "--models are checkpoints for table3 and for no other"),
        (["table3", "--models", "nowhere"], "models: 'nowhere' is not the folder of a checkpoint"),
        (["table3", "--models", "."], "models: '.' has no weights, such as model.safetensors"),
    ],
)
def test_refusals(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong is said before anything is measured, and what to do."""
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("retnet: error: ")
    assert message in error


def test_a_folder_of_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told which, and nothing is lost."""
    assert reproduce("controls", tmp_path) == 0
    record = tmp_path / "smoke/cells/parity-retnet-seed0.json"
    values = json.loads(record.read_text())
    values["settings"]["training"]["batch_size"] = 5
    record.write_text(json.dumps(values))
    capsys.readouterr()
    assert reproduce("controls", tmp_path) == 2
    error = capsys.readouterr().err
    assert "training.batch_size was 5 and is 4; choose another out folder" in error
    assert json.loads(record.read_text()) == values


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_on_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """A process that is ended after its first cells: they are kept, and the rest is measured."""
    command = [sys.executable, "-m", "retnet", "reproduce", "table8", "--budget", "smoke"]
    command += ["--seeds", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--jobs", "2"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    cells, table = tmp_path / "smoke/cells", tmp_path / "smoke/table8.md"
    deadline = time.monotonic() + 120
    while not table.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    kept = {file: file.read_text() for file in cells.glob("*.json")}
    assert 1 <= len(kept) < 4, output
    if number != signal.SIGKILL:
        assert process.returncode == 130, output
        assert "stopped; what was measured is kept" in output
    assert " of 4 measurements" in table.read_text()  # what there was
    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert {file: file.read_text() for file in kept} == kept
    assert "4 of 4 measurements" in table.read_text()
