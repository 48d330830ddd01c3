"""What is looked at after a validation leaves no trace in the run."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from retnet.config import ModelConfig
from retnet.data.tokens import load_tokens
from retnet.model import RetNet
from retnet.train.config import LogConfig, OptimizerConfig, TrainConfig
from retnet.train.interrupt import Stop
from retnet.train.learner import Learner
from retnet.train.loop import train
from retnet.train.observe import Observer

MODEL = ModelConfig(d_model=32, num_layers=2, num_heads=2, dropout=0.1)
EVERYTHING = LogConfig(every=2, norms=True, sample="def ", sample_tokens=20)
OF_OBSERVATIONS = ("norms", "sample")


def config_for(text: Path, folder: Path, log: LogConfig, **changes: Any) -> TrainConfig:
    chosen: dict[str, Any] = dict(
        data=str(text), out=str(folder), context=32, batch_size=4, steps=9, validate_every=4
    )
    chosen |= dict(precision="fp32", device="cpu", validation_bytes=1000, log=log)
    return TrainConfig(**(chosen | dict(optimizer=OptimizerConfig(warmup_steps=2)) | changes))


def metrics(out: Path) -> list[dict[str, Any]]:
    """The records without what depends on the clock."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("elapsed_s", "tokens_per_s", "memory_bytes", "train")
    return [{key: record[key] for key in record if key not in timed} for record in records]


def of_kind(out: Path, *kinds: str) -> list[dict[str, Any]]:
    return [record for record in metrics(out) if record["kind"] in kinds]


def test_a_run_that_is_looked_at_is_the_run_that_is_not(data: Path, tmp_path: Path) -> None:
    """Bit for bit, dropout included: weights, losses and validations."""
    pytest.importorskip("tensorboard")
    plain = train(MODEL, config_for(data, tmp_path / "plain", LogConfig(every=2)))
    log = dataclasses.replace(EVERYTHING, tensorboard=True)
    seen = train(MODEL, config_for(data, tmp_path / "seen", log))
    expected = plain.model.state_dict()
    for name, weight in seen.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    kinds = ("start", "train", "validation")
    assert of_kind(tmp_path / "seen", *kinds) == metrics(tmp_path / "plain")
    assert list((tmp_path / "seen").glob("events.out.tfevents.*"))


def test_each_validation_has_its_norms_and_sample(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with (tmp_path / "log").open("w+") as log:
        train(MODEL, config_for(data, out, EVERYTHING), console=Console(file=log, width=80))
        log.seek(0)
        shown = log.read().splitlines()
    norms, samples = of_kind(out, "norms"), of_kind(out, "sample")
    assert [record["step"] for record in norms] == [4, 8, 9]
    assert [record["step"] for record in samples] == [4, 8, 9]
    for record in norms:
        for what in ("outputs", "states"):
            assert [len(layer) for layer in record[what]] == [2, 2]
            assert all(value > 0 for layer in record[what] for value in layer)
    assert all(record["prompt"] == "def " and record["text"] for record in samples)
    lines = [line for line in shown if "'def ' goes on" in line]
    assert lines == [f"step {r['step']}: 'def ' goes on {r['text']!r}" for r in samples]


def test_a_run_that_goes_on_looks_as_often(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right after a validation, and at a step between two: nothing twice, nothing less."""
    train(MODEL, config_for(data, tmp_path / "straight", EVERYTHING))
    config = config_for(data, tmp_path / "run", EVERYTHING)
    learn = Learner.learn
    for step in (4, 6):

        def learn_and_stop(learner: Learner, num_steps: int, step: int = step) -> Any:
            if learner.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            return learn(learner, num_steps)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "learn", learn_and_stop)
            train(MODEL, config, resume=True)
    train(MODEL, config, resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_samples_are_of_the_seed(data: Path, tmp_path: Path) -> None:
    """And not of the random numbers that anyone else draws."""
    model = RetNet(MODEL, generator=torch.Generator().manual_seed(0)).eval()
    texts = []
    for seed in (0, 0, 1):
        config = config_for(data, tmp_path, EVERYTHING, seed=seed)
        torch.rand(1)
        texts.append(dict(observe(config, data, model, Stop()))["sample"]["text"])
    assert texts[0] == texts[1] != texts[2]


def test_a_signal_breaks_a_sample_off(data: Path, tmp_path: Path) -> None:
    model = RetNet(MODEL, generator=torch.Generator().manual_seed(0)).eval()
    stop = Stop(signal=signal.SIGINT)
    records = observe(config_for(data, tmp_path, EVERYTHING), data, model, stop)
    assert [kind for kind, _ in records] == ["norms"]


def observe(
    config: TrainConfig, text: Path, model: RetNet, stop: Stop
) -> list[tuple[str, dict[str, Any]]]:
    tokens = load_tokens(str(text))
    observer = Observer(config=config, data=tokens, documents=tokens.excerpt(1000))
    return list(observer.observe(model, torch.device("cpu"), stop))


def test_compiled_layers_are_not_compiled_again(data: Path, tmp_path: Path) -> None:
    """Each other function for retention would be compiled for itself: half a minute for nothing."""
    config = config_for(data, tmp_path, EVERYTHING, compile=True)
    model = RetNet(MODEL, generator=torch.Generator().manual_seed(0)).eval()
    expected = observe(config, data, model, Stop())

    def refuse(*_: Any) -> Any:
        raise AssertionError("compiled")

    for layer in model.backbone.layers:
        layer.compile(backend=refuse)
    assert observe(config, data, model, Stop()) == expected


@pytest.mark.slow
def test_several_processes_look_at_the_whole_model(data: Path, tmp_path: Path) -> None:
    """Each keeps half of every weight; the first one alone looks, writes and shows."""
    flags = ["--train.steps", "4", "--train.data", data, "--train.context", "32"]
    flags += ["--train.precision", "fp32", "--train.validation_bytes", "1000"]
    flags += ["--log.norms", "true", "--log.sample", "def ", "--log.sample_tokens", "10"]
    flags += ["--model.d_model", "32", "--model.num_layers", "1", "--train.device", "cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start, more in (
        ("alone", [], []),
        ("shards", torchrun, ["--parallel.shard", "2"]),
    ):
        command = [sys.executable, *start, "-m", "retnet", "train", *flags, *more]
        command += ["--train.out", tmp_path / name]
        done = subprocess.run(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0
        assert done.stdout.count("Write with it:") == 1
    alone, shards = (of_kind(tmp_path / name, *OF_OBSERVATIONS) for name in ("alone", "shards"))
    assert [record["kind"] for record in shards] == ["norms", "sample"] * 4
    for record, expected in zip(shards, alone, strict=True):
        assert record.get("text") == expected.get("text")
        for what in ("outputs", "states"):
            for heads, expected_heads in zip(
                record.get(what, []), expected.get(what, []), strict=True
            ):
                assert heads == pytest.approx(expected_heads, rel=1e-3)
