"""`retnet eval`, as people call it."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

import retnet
from retnet.checkpoint import save_checkpoint
from retnet.cli import main
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet

ROOT = Path(retnet.__file__).parent.parent
# The command, in a process in which whoever looks up an address or connects is found out.
OFFLINE = """
import socket, sys
from retnet.cli import main

def fail(*arguments):
    sys.exit(f"network: {arguments}")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = fail
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model_dir(core: RetNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that training leaves."""
    directory = tmp_path_factory.mktemp("model")
    save_checkpoint(directory, core, ByteTokenizer())
    return directory


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    online = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", OFFLINE, "eval", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **online,
            "HOME": str(cwd),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "60",
        },
    )


def test_from_files_to_a_table(model_dir: Path, task_data: Path, tmp_path: Path) -> None:
    """No network, no files but the one asked for, stdout for the table alone, numbers whole."""
    pytest.importorskip("lm_eval", exc_type=ImportError)
    flags = ("--task_data", str(task_data), "--batch-size", "3", "--out", "out.json")
    done = run("--model", str(model_dir), *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("lm_eval " + version("lm_eval"))
    assert "bootstrapping" not in done.stdout
    assert "fatal" not in done.stderr

    report = json.loads((tmp_path / "out.json").read_text())
    assert report["settings"]["batch_size"] == 3
    assert report["settings"]["device"] in ("cpu", "cuda")
    assert datetime.fromisoformat(report["date"]).utcoffset() == timedelta(0)
    assert report["versions"]["lm_eval"] == version("lm_eval")
    accuracies = {score["task"]: score for score in report["scores"] if score["metric"] == "acc"}
    assert list(accuracies) == ["hellaswag", "piqa", "winogrande", "lambada_openai"]
    for score in accuracies.values():
        assert f"{score['value']:.4f}" in done.stdout
        assert f"{score['chance']:.4f}" in done.stdout
    assert accuracies["piqa"]["num_items"] == 5
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["out.json"]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["eval", *arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_lm_eval(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'retnet[eval]'" in refusal(capsys, "--model", str(model_dir))


def test_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", exc_type=ImportError)
    assert str(tmp_path) in refusal(capsys, "--model", str(tmp_path))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, which take long to read, are not read."""

    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--tasks", "hellaswga"), "--tasks has 'hellaswga', .*; did you mean 'hellaswag'?"),
        (("--task_data", "nowhere"), "--task_data 'nowhere' is not a folder"),
        (("--device", "abacus"), "--device 'abacus' cannot be used here"),
    ],
)
@pytest.mark.usefixtures("one_index", "no_model")
def test_refusals_name_the_flag(
    flags: tuple[str, str], says: str, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(capsys, "--model", str(model_dir), *flags)
    assert re.match(f"retnet: error: {says}", error)


@pytest.fixture
def no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tasks' definitions, which take long to read, are not read."""
    pytest.importorskip("lm_eval", exc_type=ImportError)

    def fail() -> None:
        raise AssertionError("the tasks were looked up")

    monkeypatch.setattr("retnet.eval.harness.TaskManager", fail)


@pytest.mark.usefixtures("no_model", "no_tasks")
def test_another_projects_model(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers said that config.json should have a model_type, after 11 s."""
    fields = {"decoder_embed_dim": 8, "decoder_retention_heads": 2, "decoder_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert "retnet convert --from torchscale" in refusal(capsys, "--model", str(tmp_path))


@pytest.mark.usefixtures("no_model", "no_tasks")
def test_model_without_a_tokenizer(
    core: RetNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path, core)
    assert f"no tokenizer.json in {tmp_path}" in refusal(capsys, "--model", str(tmp_path))


def test_figures_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.json"
    out.write_text("{}")
    assert f"--out '{out}' exists already" in refusal(capsys, "--out", str(out))
    assert out.read_text() == "{}"
