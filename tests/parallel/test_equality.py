"""However the work is spread, the run is the same: every kind against one process."""

from typing import Any

import pytest

from retnet.config import ModelConfig
from retnet.parallel.config import ParallelConfig
from tests.parallel.launch import run
from tests.parallel.training import losses, small_config

STEPS = 20


def require_equal(num_processes: int, parallel: ParallelConfig, model: ModelConfig) -> None:
    """Losses and gradient norms to 1e-5, through AdamW and clipping, the same on every rank."""
    options = {"segments": True}
    expected = losses(ParallelConfig(), model, STEPS, options)
    results = run(losses, num_processes, parallel, model, STEPS, options)
    assert all(result == results[0] for result in results)
    assert results[0][0] == pytest.approx(expected[0], abs=1e-5)
    assert results[0][1] == pytest.approx(expected[1], rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "sizes"),
    [
        (2, {}),
        (4, {}),
        (2, {"shard": 2}),
        (4, {"shard": 4}),
        (4, {"shard": 2}),
        (2, {"tensor": 2}),
        (4, {"tensor": 4}),
        (4, {"tensor": 2}),
        (4, {"tensor": 2, "shard": 2}),
        (4, {"tensor": 2, "sequence": 2}),
    ],
    ids=str,
)
def test_losses_of_twenty_steps(num_processes: int, sizes: dict[str, Any]) -> None:
    require_equal(num_processes, ParallelConfig(**sizes), small_config())


FEATURES: list[dict[str, Any]] = [
    {"bias": True, "head_norm_affine": True, "dropout": 0.2},
    {"score_norm": "paper", "feed_forward": "swiglu", "tie_embeddings": False},
    {"score_norm": "decay", "head_norm": "rmsnorm", "head_norm_affine": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_split_heads_of_other_models(features: dict[str, Any]) -> None:
    """Biases are added once, norms shared by heads learn from all of them, processes that hold the
    same activations drop the same of them."""
    require_equal(2, ParallelConfig(tensor=2), small_config(**features))


@pytest.mark.slow
def test_a_norm_shared_by_heads_in_a_mesh_of_two_dimensions() -> None:
    model = small_config(bias=True, head_norm_affine=True)
    require_equal(4, ParallelConfig(tensor=2, shard=2), model)
