"""What a training loop does beside plain steps: resume, accumulate, look, carry a state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.parallel.config import ParallelConfig
from retnet.parallel.world import World, join
from tests.parallel.launch import run
from tests.parallel.training import (
    CPU,
    Run,
    gradients,
    make_batch,
    own_rows,
    small_config,
)

KINDS = [(4, {}), (4, {"shard": 2})]


def steps_between(first: int, last: int, saved: dict[str, Any] | None) -> Any:
    """Some steps of a run, from nothing or from what another call returned."""
    with join(ParallelConfig(), CPU) as world:
        run = Run(world, small_config(), torch.float32)
        if saved is not None:
            run.module.model.load_state_dict(saved["model"])
            run.optimizer.load_state_dict(saved["optimizer"])
        losses = [run.step(step) for step in range(first, last)]
        return {
            "losses": losses,
            "model": run.module.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
        }


@pytest.mark.slow
def test_replicas_resume_bit_for_bit() -> None:
    """DDP packs its buckets anew after the first backward pass: with three or more processes the
    second step then sums in another order than the first, and a run resumed at step 3 would differ
    from one that went through."""
    straight = run(steps_between, 4, 0, 6, None)[0]
    first = run(steps_between, 4, 0, 3, None)[0]
    resumed = run(steps_between, 4, 3, 6, first)[0]
    assert first["losses"] + resumed["losses"] == straight["losses"]
    for name, weight in straight["model"].items():
        assert torch.equal(resumed["model"][name], weight), name


def accumulated(world: World, num_parts: int) -> dict[str, Tensor]:
    """The gradient of one step in parts, with a look at the loss between them."""
    run = Run(world, small_config(), torch.float64)
    for step in range(num_parts):
        batch = own_rows(make_batch(step), world)
        with run.module.accumulating(is_last=step == num_parts - 1):
            loss, _ = run.module(*batch)
            loss.backward()
        with torch.no_grad():
            run.module(*batch)
    return dict(gradients(run.module))


def looked_at(world: World) -> list[float]:
    """Losses of steps, with a look at each before the update, and of the model called itself."""
    run = Run(world, small_config(), torch.float64)
    seen: list[float] = []
    for step in range(2):
        batch = own_rows(make_batch(step), world)
        loss, _ = run.module(*batch)
        loss.backward()
        with torch.no_grad():
            run.module(*batch)
        run.update()
        with run.module.open_model() as model:
            logits, _ = model(batch.tokens)
        seen += [world.mean(loss).item(), world.mean(logits.logsumexp(-1).mean()).item()]
    return seen


def chained(world: World) -> dict[str, Tensor]:
    """The gradient of two windows that a state links, in one backward pass."""
    run = Run(world, small_config(), torch.float64)
    state, total = None, torch.zeros((), dtype=torch.float64)
    for step in range(2):
        loss, state = run.module(*own_rows(make_batch(step), world), state)
        total = total + loss
    total.backward()
    return dict(gradients(run.module))


def everything(parallel: ParallelConfig) -> dict[str, Any]:
    with join(parallel, CPU) as world:
        return {
            "accumulated": accumulated(world, 2),
            "chained": chained(world),
            "looked at": looked_at(world),
        }


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "sizes"), KINDS, ids=str)
def test_what_a_loop_does(num_processes: int, sizes: dict[str, Any]) -> None:
    """Gradients of several parts, and of windows linked by a state; calls without gradients in
    between, before and after an update; all as in one process."""
    expected = everything(ParallelConfig())
    for result in run(everything, num_processes, ParallelConfig(**sizes)):
        for kind in ("accumulated", "chained"):
            for name, gradient in expected[kind].items():
                torch.testing.assert_close(
                    result[kind][name], gradient, rtol=1e-9, atol=1e-12, msg=f"{kind} {name}"
                )
        assert result["looked at"] == pytest.approx(expected["looked at"], rel=1e-12)
