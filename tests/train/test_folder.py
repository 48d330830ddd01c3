import json
from pathlib import Path

import pytest

from retnet.checkpoint import load_checkpoint
from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer, load_tokenizer
from retnet.model import RetNet
from retnet.train.errors import TrainingError
from retnet.train.folder import RunFolder

RUN = {"model": {}, "train": {}, "data": {}}


def test_nothing_is_made_until_asked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    assert not folder.path.exists()
    folder.create(RUN)
    assert folder.metrics.read_text() == ""


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "loss.png", "model.safetensors", "config.json", "tokenizer.json"]
)
def test_a_folder_with_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(TrainingError, match=rf"already holds a run \({name}\); choose another"):
        RunFolder(tmp_path).require_free()
    assert (tmp_path / name).read_text() == "precious"


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).create(RUN)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(TrainingError, match=r"cannot write to out folder .*run': File exists"):
        RunFolder(tmp_path / "run").create(RUN)


def test_records_are_json_lines(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record({"step": 1, "loss": 0.5})
    folder.record({"step": 2, "loss": 0.25})
    lines = folder.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "gone")
    with pytest.raises(TrainingError, match=r"cannot write .*metrics\.jsonl': No such file"):
        folder.record({"step": 1})


def test_the_folder_is_a_checkpoint(tmp_path: Path) -> None:
    config = ModelConfig(d_model=32, num_layers=1, num_heads=2)
    folder = RunFolder(tmp_path)
    folder.create(RUN)
    folder.record({"step": 1})
    folder.save_model(RetNet(config), ByteTokenizer())
    assert load_checkpoint(tmp_path).config == config
    assert load_tokenizer(tmp_path).vocab_size == config.vocab_size
    assert folder.metrics.read_text() == '{"step": 1}\n'


def test_a_run_is_found_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.holds_a_run()
    folder.create(RUN)
    assert folder.holds_a_run()
    assert folder.read_run() == RUN
    with pytest.raises(TrainingError, match=r"holds a run \(run.json\); go on with it by --resume"):
        folder.require_free()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {}}'])
def test_a_file_of_something_else_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(TrainingError, match=r"run\.json (can't be read|does not describe a run)"):
        RunFolder(tmp_path).read_run()


def test_what_will_be_recorded_again_is_forgotten(tmp_path: Path) -> None:
    """Half a line too, which a kill may leave, and a validation that is to be repeated, with what
    came of it.
    """
    folder = RunFolder(tmp_path)
    kept = [
        {"kind": "start", "step": 0},
        {"kind": "train", "step": 4},
        {"kind": "validation", "step": 4},
        {"kind": "norms", "step": 4},
        {"kind": "train", "step": 8},
    ]
    of_the_validation = [{"kind": kind, "step": 8} for kind in ("validation", "norms", "sample")]
    for record in (*kept, *of_the_validation, {"kind": "train", "step": 9}):
        folder.record(record)
    with folder.metrics.open("a") as file:
        file.write('{"kind": "tra')
    folder.forget_after(8, validated_step=4)
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == kept
