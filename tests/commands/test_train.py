"""Which settings a run goes on with: those given, else those that it was begun with."""

from pathlib import Path
from typing import Any

import pytest

from retnet.cli import main

SMALL = ("--model.d_model", "32", "--model.num_layers", "1", "--train.device", "cpu")
TINY_RUN = (*SMALL, "--train.data", "text.txt", "--train.context", "16", "--train.steps", "3")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("What is written here is learnt by heart. " * 200)
    return tmp_path


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def test_a_folder_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """Though every setting was another than the default."""
    assert train(*TINY_RUN, "--train.out", "run") == 0
    assert train("--resume", "--train.out", "run") == 0
    assert "going on after step 3" in capsys.readouterr().out


def test_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """What a queue does with a job that was cut short."""
    for _ in range(2):
        assert train(*TINY_RUN, "--preset", "tiny", "--train.out", "run", "--resume") == 0
    assert "going on after step 3" in capsys.readouterr().out


def test_another_preset_is_not_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    """A run of a tiny model went on as that, whatever --preset said."""
    assert train(*TINY_RUN, "--train.out", "run") == 0
    assert train("--resume", "--train.out", "run", "--preset", "small") == 2
    assert "model.d_model was 32 and is 320" in capsys.readouterr().err


def test_the_folder_may_be_named_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The settings were those of the run in the default folder, which is another one."""
    assert train(*TINY_RUN, "--train.seed", "5") == 0
    settings: dict[str, Any] = {"data": "text.txt", "context": 16, "steps": 2, "out": "run"}
    lines = "".join(f"  {name}: {value}\n" for name, value in settings.items())
    Path("run.yaml").write_text(f"train:\n{lines}model: {{d_model: 32, num_layers: 1}}\n")
    for _ in range(2):
        assert train("--config", "run.yaml", "--resume", "--train.device", "cpu") == 0
    assert "going on after step 2" in capsys.readouterr().out
