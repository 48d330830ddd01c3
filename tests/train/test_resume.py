"""A run that was interrupted anywhere and goes on is the run that was not."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from retnet.checkpoint import load_checkpoint
from retnet.config import ModelConfig
from retnet.train.config import LogConfig, OptimizerConfig, TrainConfig
from retnet.train.errors import TrainingError
from retnet.train.learner import Learner
from retnet.train.loop import TrainResult, train
from retnet.train.run import Run

MODEL = ModelConfig(d_model=32, num_layers=2, num_heads=2, dropout=0.1)
KILLS = int(os.environ.get("RETNET_KILLS", "4"))


def config_for(text: Path, folder: Path, **changes: Any) -> TrainConfig:
    chosen: dict[str, Any] = dict(
        data=str(text), out=str(folder), context=32, batch_size=4, steps=14, validate_every=5
    )
    chosen |= dict(precision="fp32", device="cpu", validation_bytes=1000, save_every=3)
    chosen |= dict(optimizer=OptimizerConfig(warmup_steps=2), log=LogConfig(every=2))
    return TrainConfig(**(chosen | changes))


def curve(out: Path) -> list[dict[str, Any]]:
    """The records of a run, without what depends on the clock."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("elapsed_s", "tokens_per_s", "memory_bytes", "train")
    return [{key: record[key] for key in record if key not in timed} for record in records]


def assert_same_run(first: Path, second: Path) -> None:
    assert curve(first) == curve(second)
    expected = load_checkpoint(first).state_dict()
    for name, weight in load_checkpoint(second).state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert not list(second.rglob(".*")), "something half written was left"


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ctrl-C came during a step."""
    learn = Learner.learn

    def learn_and_stop(learner: Learner, num_steps: int) -> Any:
        if learner.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(learner, num_steps)

    monkeypatch.setattr(Learner, "learn", learn_and_stop)


WAYS: dict[str, dict[str, Any]] = {
    "windows": {},
    "parts": {"accumulate": 2},
    "streams": {"carry_state": True, "horizon": 2},
    "checkpointing": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [0, 4, 10, 13])
def test_stopped_and_gone_on_with(
    data: Path, tmp_path: Path, way: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two measurements, just before a validation, within the last step: all the same."""
    straight = config_for(data, tmp_path / "straight", **WAYS[way])
    train(MODEL, straight)
    config = dataclasses.replace(straight, out=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        stopped = train(MODEL, config)
    assert stopped.num_steps == step + 1
    assert (stopped.exit_code, stopped.validation_bits_per_byte is None) == (130, True)
    train(MODEL, config, resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_signal_during_a_validation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is broken off, and made good when the run goes on."""
    straight = config_for(data, tmp_path / "straight")
    train(MODEL, straight)
    config = dataclasses.replace(straight, out=str(tmp_path / "run"))
    validate = Run._validate

    def validate_and_stop(run: Run, *arguments: Any) -> float | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_validate", validate_and_stop)
        assert train(MODEL, config).stopped_by == signal.SIGTERM
    train(MODEL, config, resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_what_is_kept(data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run", keep=3)
    result = train(MODEL, config)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000010", "step-00000012", "step-00000014"]
    records = [record for record in curve(tmp_path / "run") if record["kind"] == "validation"]
    best = min(record["bits_per_byte"] for record in records if not record["whole"])
    assert best == records[-2]["bits_per_byte"]
    for name, weight in load_checkpoint(tmp_path / "run" / "best").state_dict().items():
        assert torch.equal(weight, result.model.state_dict()[name])


def test_a_run_that_has_ended_has_nothing_left_to_do(data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run")
    first = train(MODEL, config)
    before = curve(tmp_path / "run")
    again = train(MODEL, config, resume=True)
    assert again.num_steps == first.num_steps == 14
    assert again.validation_bits_per_byte == first.validation_bits_per_byte
    assert curve(tmp_path / "run") == before


def test_where_there_is_no_run_one_begins(data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run", steps=2)
    assert train(MODEL, config, resume=True).num_steps == 2


def test_how_it_is_computed_may_change(data: Path, tmp_path: Path) -> None:
    """The losses are the same but for rounding."""
    config = config_for(data, tmp_path / "run", steps=8)
    train(MODEL, dataclasses.replace(config, out=str(tmp_path / "straight")))
    _half(config)
    other = dataclasses.replace(config, accumulate=2, activation_checkpointing=True, keep=1)
    train(dataclasses.replace(MODEL), other, resume=True)
    losses = [
        [record["loss_nats"] for record in curve(tmp_path / name) if record["kind"] == "train"]
        for name in ("straight", "run")
    ]
    # Dropout draws another mask for each part.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def _half(config: TrainConfig) -> TrainResult:
    """The run stopped after six steps."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(5, patch)
        return train(MODEL, config)


def test_another_run_is_refused(data: Path, tmp_path: Path) -> None:
    """What differs is named; nothing is touched."""
    config = config_for(data, tmp_path / "run")
    _half(config)
    before = curve(tmp_path / "run")
    other = dataclasses.replace(
        config, context=16, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
    )
    message = (
        r"is another one: model.dropout was 0.1 and is 0.2; train.context was 32 and is 16; "
        r"train.optimizer.learning_rate was 0.004 and is 0.001; go on with the same"
    )
    with pytest.raises(TrainingError, match=message):
        train(dataclasses.replace(MODEL, dropout=0.2), other, resume=True)
    assert curve(tmp_path / "run") == before


def test_changed_data_are_refused(data: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    shutil.copytree(data, text)
    config = config_for(text, tmp_path / "run")
    _half(config)
    (text / "new.txt").write_text("another document")
    with pytest.raises(TrainingError, match="was trained on other data, or with another tokenizer"):
        train(MODEL, config, resume=True)


@pytest.mark.parametrize("damage", ["progress.json", "weights"])
def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path, damage: str) -> None:
    """And without it the run goes on from the one before."""
    config = config_for(data, tmp_path / "run")
    train(MODEL, dataclasses.replace(config, out=str(tmp_path / "straight")))
    _half(config)
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    path = newest / damage if damage == "progress.json" else next(newest.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TrainingError, match=r"step-00000006.*can't be read"):
        train(MODEL, config, resume=True)
    shutil.rmtree(newest)
    train(MODEL, config, resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")


# --- real processes, really killed


def command(config: TrainConfig, num_processes: int) -> list[str]:
    """`retnet train --resume` of a run that config describes."""
    start = [sys.executable, "-m", "retnet"]
    if num_processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(num_processes), "-m", "retnet"]
    flags = ["--train.steps", config.steps, "--train.save_every", config.save_every]
    flags += ["--train.data", config.data, "--train.out", config.out, "--train.precision", "fp32"]
    flags += ["--train.context", 32, "--train.validate_every", config.validate_every]
    flags += ["--train.validation_bytes", 500, "--log.every", 1, "--train.device", "cpu"]
    flags += ["--model.d_model", 32, "--model.num_layers", 2, "--model.num_heads", 2]
    return [*start, "train", "--resume", *map(str, flags)]


def begin(config: TrainConfig, num_processes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(config, num_processes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def records(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def kill_at_a_random_moment(process: subprocess.Popen[str], out: Path, moments: Any) -> None:
    """Some time after it has written its first record; saves take most of its time."""
    before, deadline = records(out), time.monotonic() + 120
    while records(out) <= before and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(moments.uniform(0, 0.6))
    assert process.poll() is None, "the run ended before it was killed: give it more steps"
    everyone = [process, *psutil.Process(process.pid).children(recursive=True)]
    moments.shuffle(everyone)
    for each in everyone:
        each.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform == "win32", reason="signals are others on Windows")
@pytest.mark.parametrize("num_processes", [1, 2])
def test_kills(data: Path, tmp_path: Path, num_processes: int) -> None:
    """Killed (-9) again and again, launcher and workers in any order, it ends as if it was not."""
    out = tmp_path / "run"
    config = config_for(data, out, steps=60 * KILLS, save_every=2, validate_every=50)
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    process = begin(straight, num_processes)
    assert (process.communicate(timeout=600)[0], process.returncode)[1] == 0
    moments = random.Random(num_processes)
    for _ in range(KILLS):
        kill_at_a_random_moment(begin(config, num_processes), out, moments)
    process = begin(config, num_processes)
    log, _ = process.communicate(timeout=600)
    assert process.returncode == 0, log
    assert "going on after step" in log
    assert_same_run(tmp_path / "straight", out)
