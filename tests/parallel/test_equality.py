"""However the work is spread, the run is the same: every kind against one process."""

from typing import Any

import pytest

from retnet.parallel.config import ParallelConfig
from tests.parallel.launch import run
from tests.parallel.training import losses, small_config

STEPS = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "sizes"),
    [
        (2, {}),
        (4, {}),
        (2, {"shard": 2}),
        (4, {"shard": 4}),
        (4, {"shard": 2}),
    ],
    ids=str,
)
def test_losses_of_twenty_steps(num_processes: int, sizes: dict[str, Any]) -> None:
    """Losses and gradient norms to 1e-5, through AdamW and clipping, the same on every rank."""
    model, options = small_config(), {"segments": True}
    expected = losses(ParallelConfig(), model, STEPS, options)
    results = run(losses, num_processes, ParallelConfig(**sizes), model, STEPS, options)
    assert all(result == results[0] for result in results)
    got, wanted = results[0], expected
    assert got[0] == pytest.approx(wanted[0], abs=1e-5)
    assert got[1] == pytest.approx(wanted[1], rel=1e-5)
