"""Joining: what the environment says, what does not fit, and who is gone when an exchange fails."""

import os
import signal
import time
from typing import Any

import pytest
import torch

from retnet.parallel.config import ParallelConfig
from retnet.parallel.world import join
from tests.parallel.launch import run, start

CPU = torch.device("cpu")


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun there is no group, and every question has a trivial answer."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join(ParallelConfig(), CPU) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert (world.data_rank, world.data_size, world.token_rank) == (0, 1, 0)
        assert world.mesh is None and world.weight_mesh is None
        assert world.any(True) and not world.any(False)
        assert world.mean(torch.tensor(2.5)).item() == 2.5
        world.barrier()
    assert not torch.distributed.is_initialized()


def test_alone_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with (
        pytest.raises(ValueError, match=r"sequence 2 = 2 must divide .* got 1; start .* torchrun"),
        join(ParallelConfig(sequence=2), CPU),
    ):
        pass


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        ({"WORLD_SIZE": "2"}, "cpu", r"WORLD_SIZE=2 but no RANK, MASTER_ADDR, MASTER_PORT"),
        ({}, "meta", r"device must be cpu or cuda for several processes, got meta"),
        ({}, "cuda:0", r"device must be 'cuda' without a number .* got cuda:0"),
        ({"LOCAL_RANK": "99"}, "cuda", r"process number 100; start torchrun with --nproc-per-node"),
    ],
)
def test_what_cannot_start(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], device: str, message: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    whole = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in (
        environment if "WORLD_SIZE" in environment else whole | environment
    ).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match=message),
        join(ParallelConfig(), torch.device(device)),
    ):
        pass


def questions(config: ParallelConfig) -> dict[str, Any]:
    with join(config, CPU) as world:
        return {
            "place": (world.data_rank, world.sequence_rank, world.tensor_rank, world.token_rank),
            "data_size": world.data_size,
            "any": (world.any(world.rank == 1), world.any(False)),
            "mean": world.mean(torch.tensor([1.0, world.rank])).tolist(),
            "mesh": world.mesh.mesh.flatten().tolist() if world.mesh else None,
            "shards": world.weight_mesh["shard"].size() if world.weight_mesh else None,
        }


@pytest.mark.slow
def test_places() -> None:
    """Ranks of one tensor group read the same tokens, those of one sequence group the same rows."""
    results = run(questions, 4, ParallelConfig(tensor=2, sequence=2))
    assert [result["place"] for result in results] == [
        (0, 0, 0, 0),
        (0, 0, 1, 0),
        (0, 1, 0, 1),
        (0, 1, 1, 1),
    ]
    results = run(questions, 4, ParallelConfig(shard=2))
    assert [result["place"] for result in results] == [(rank, 0, 0, rank) for rank in range(4)]
    for result in results:
        assert result["data_size"] == 4 and result["shards"] == 2
        assert result["any"] == (True, False)
        assert result["mean"] == [1.0, 1.5]


def lose(how: str) -> None:
    """Exchanges, until rank 2 does not come to one."""
    with join(ParallelConfig(timeout_s=6), CPU) as world:
        world.barrier()
        if world.rank == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stuck":
                time.sleep(25)
            raise ValueError("an error of its own")
        world.mean(torch.ones(1000))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "failing", "stuck"])
def test_a_lost_rank_is_named(how: str) -> None:
    """gloo tells a process only that one of its neighbours went away, which may have been the one
    that another neighbour left: the survivors must agree on who was first."""
    began = time.monotonic()
    outcomes = start(lose, 4, how)
    if how != "stuck":
        assert time.monotonic() - began < 60
    assert outcomes[2][0] == (-signal.SIGKILL if how == "killed" else 1)
    why = "is alive but did not come" if how == "stuck" else "is gone"
    for rank in (0, 1, 3):
        code, failure = outcomes[rank]
        assert code == 1
        assert "RankLostError: rank 2 (process" in failure and why in failure, failure
