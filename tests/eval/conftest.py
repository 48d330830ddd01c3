"""What the tests of evaluation share: lm_eval's tasks, a small model, and data of four tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from retnet.config import preset
from retnet.model import RetNet

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

PIQA = [
    {"goal": f"open box {number}", "sol1": "lift the lid", "sol2": "sing " * number, "label": 0}
    for number in range(1, 6)
]
WINOGRANDE = [
    {"sentence": "Ann asked Bo because _ knew.", "option1": "Ann", "option2": "Bo", "answer": "2"},
    {
        "sentence": "The cup is in the bag; _ is big.",
        "option1": "cup",
        "option2": "bag",
        "answer": "2",
    },
]
LAMBADA = [{"text": "He sat down and she sat"}, {"text": "naïve ✓ café"}]
HELLASWAG = "Canoeing: A man sits. he\n1\npaddles.\nsleeps well.\nsings.\nis.\n"


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def known() -> "TaskManager":
    """All tasks of lm_eval; reading their definitions takes seconds."""
    pytest.importorskip("lm_eval", exc_type=ImportError)
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture
def one_index(known: "TaskManager", monkeypatch: pytest.MonkeyPatch) -> "TaskManager":
    """The same, for what reads them for itself."""
    from retnet.eval import harness

    monkeypatch.setattr(harness, "TaskManager", lambda: known)
    return known


@pytest.fixture(scope="session")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few items of each of four tasks, as files."""
    directory = tmp_path_factory.mktemp("task_data")
    write_lines(directory / "piqa" / "validation.jsonl", PIQA)
    write_lines(directory / "piqa" / "train.jsonl", PIQA[::-1])
    write_lines(directory / "winogrande" / "winogrande_val.jsonl", WINOGRANDE)
    write_lines(directory / "lambada" / "lambada_test.jsonl", LAMBADA)
    (directory / "hellaswag").mkdir()
    (directory / "hellaswag" / "val.txt").write_text(HELLASWAG)
    return directory


@pytest.fixture(scope="session")
def core() -> RetNet:
    """A small model whose weights are large enough for its guesses to differ."""
    model = RetNet(
        preset("tiny", d_model=32, num_layers=2), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()
