"""A run by several processes is the run of one, and goes on with any other number of them."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.checkpoint import load_checkpoint
from retnet.config import ModelConfig
from retnet.parallel.config import ParallelConfig
from retnet.train.config import LogConfig, OptimizerConfig, TrainConfig
from retnet.train.learner import Learner
from retnet.train.loop import train
from tests.parallel.launch import run

MODEL = ModelConfig(d_model=32, num_layers=2, num_heads=2)
STEPS = 12


def config_for(text: Path, folder: Path, **changes: Any) -> TrainConfig:
    chosen: dict[str, Any] = dict(
        data=str(text), out=str(folder), context=32, batch_size=4, steps=STEPS, validate_every=5
    )
    chosen |= dict(precision="fp32", device="cpu", validation_bytes=1000, save_every=4)
    chosen |= dict(optimizer=OptimizerConfig(warmup_steps=2), log=LogConfig(every=1))
    return TrainConfig(**(chosen | changes))


def work(config: TrainConfig, stop_after: int | None) -> int:
    """Go on with a run as this process of it; a signal after a step, to the last process alone."""
    learn = Learner.learn

    def learn_and_stop(learner: Learner, num_steps: int) -> Any:
        found = learn(learner, num_steps)
        is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if learner.step == stop_after and is_last:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    Learner.learn = learn_and_stop  # type: ignore[method-assign]
    try:
        return train(MODEL, config, resume=True).num_steps
    finally:
        Learner.learn = learn  # type: ignore[method-assign]


def losses(out: Path) -> dict[str, list[float]]:
    """Losses of each kind of record, one a step."""
    found: dict[str, list[float]] = {"train": [], "validation": []}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] in found:
            found[record["kind"]].append(record["loss_nats"])
    return found


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The same run by one process, with windows and with streams."""
    outs = {}
    for carry_state in (False, True):
        out = tmp_path_factory.mktemp("runs") / "straight"
        horizon = 2 if carry_state else 1
        train(MODEL, config_for(data, out, carry_state=carry_state, horizon=horizon))
        outs[carry_state] = out
    return outs


ROADS: dict[str, list[tuple[int, dict[str, int]]]] = {
    "replicas": [(2, {}), (1, {}), (4, {})],
    "shards": [(2, {"shard": 2}), (4, {"shard": 4}), (1, {})],
    "sequences": [(2, {"sequence": 2}), (4, {"sequence": 2, "shard": 2}), (2, {})],
}


@pytest.mark.slow
@pytest.mark.parametrize("carry_state", [False, True], ids=["windows", "streams"])
@pytest.mark.parametrize("road", ROADS)
def test_another_world_goes_on(
    data: Path, tmp_path: Path, straight: dict[bool, Path], road: str, carry_state: bool
) -> None:
    """Three worlds, one after the other, with a signal to one process in between: to 1e-6 the
    losses of the straight run; the model in the folder is whole."""
    horizon = 2 if carry_state else 1
    config = config_for(data, tmp_path / "run", carry_state=carry_state, horizon=horizon)
    for (num_processes, sizes), end in zip(ROADS[road], (3, 7, None), strict=True):
        here = dataclasses.replace(config, parallel=ParallelConfig(**sizes))
        assert run(work, num_processes, here, end) == [end or STEPS] * num_processes
    expected, found = losses(straight[carry_state]), losses(tmp_path / "run")
    assert len(found["train"]) == STEPS
    for kind, values in expected.items():
        assert found[kind] == pytest.approx(values, rel=0, abs=1e-6), kind
    wanted = load_checkpoint(straight[carry_state]).state_dict()
    for name, weight in load_checkpoint(tmp_path / "run").state_dict().items():
        torch.testing.assert_close(weight, wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "sizes"), [(4, {}), (4, {"shard": 2})], ids=str)
def test_the_same_world_goes_on_exactly(
    data: Path, tmp_path: Path, num_processes: int, sizes: dict[str, int]
) -> None:
    """Bit for bit, though four processes' gradients are summed in an order that must be kept."""
    config = config_for(data, tmp_path / "straight", parallel=ParallelConfig(**sizes))
    run(work, num_processes, config, None)
    other = dataclasses.replace(config, out=str(tmp_path / "run"))
    for end in (5, None):
        run(work, num_processes, other, end)
    assert losses(tmp_path / "straight") == losses(tmp_path / "run")
    wanted = load_checkpoint(tmp_path / "straight").state_dict()
    for name, weight in load_checkpoint(tmp_path / "run").state_dict().items():
        assert torch.equal(weight, wanted[name]), name
