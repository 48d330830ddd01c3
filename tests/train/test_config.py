import dataclasses
import json
import subprocess
import sys

import pytest

from retnet.parallel.config import ParallelConfig
from retnet.train.config import LogConfig, OptimizerConfig, TrainConfig


def test_importing_it_loads_nothing_heavy() -> None:
    program = (
        "import sys, retnet.train.config\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'rich', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_survives_json() -> None:
    config = TrainConfig(
        steps=7,
        optimizer=OptimizerConfig(betas=(0.8, 0.9)),
        log=LogConfig(every=3),
        parallel=ParallelConfig(tensor=2),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_length_is_steps_or_minutes() -> None:
    assert TrainConfig(steps=5).budget_s is None
    assert TrainConfig(minutes=2).budget_s == 120
    assert TrainConfig().budget_s == 180
    assert dataclasses.replace(TrainConfig(), steps=3).budget_s is None
    with pytest.raises(ValueError, match="got 5 and 2; pass one of them"):
        TrainConfig(steps=5, minutes=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "context must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"steps": True}, "steps must be an integer >= 1, got True"),
        ({"optimizer": {"warmup_steps": -1}}, "warmup_steps must be an integer >= 0, got -1"),
        ({"optimizer": {"warmup_steps": None}}, "warmup_steps must be an integer >= 0, got None"),
        ({"seed": -3}, "seed must be an integer >= 0, got -3"),
        ({"minutes": 0}, "minutes must be a number > 0, got 0"),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            "learning_rate must be a number > 0",
        ),
        ({"optimizer": {"clip": -1}}, "clip must be a number > 0, got -1"),
        ({"optimizer": {"weight_decay": -0.1}}, "weight_decay must be a number >= 0, got -0.1"),
        (
            {"optimizer": {"betas": (0.9, 1.0)}},
            r"betas must be two numbers in \[0, 1\), got",
        ),
        ({"optimizer": {"betas": (0.9,)}}, "betas must be two numbers"),
        ({"log": {"sample": 3}}, "sample must be a text or None, got 3"),
        ({"optimizer": {"learning_rate": 1e3}}, "learning_rate must be at most 1, got 1000.0"),
        ({"optimizer": {"schedule": "liner"}}, "got 'liner'; did you mean 'linear'"),
        ({"optimizer": {"final_share": 2}}, r"final_share must be a number in \[0, 1\], got 2"),
        ({"accumulate": 3}, "accumulate must divide batch_size, got 3 and 4"),
        ({"horizon": 2}, "horizon 2 needs carry_state"),
        ({"carry_state": 1}, "carry_state must be true or false, got 1"),
        ({"keep": 0}, "keep must be an integer >= 1, got 0"),
        ({"precision": "bf61"}, "'bf16', got 'bf61'; did you mean 'bf16'"),
        ({"threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"data": ""}, "data must name a file"),
        ({"out": ""}, "out must name a folder"),
    ],
)
def test_bad_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict(changes)


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="'learning_rat'; did you mean 'learning_rate'"):
        TrainConfig.from_dict({"optimizer": {"learning_rat": 1e-3}})
