"""Rows spread over processes give the losses and gradients of rows read by one."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from retnet.data.batches import Batch
from retnet.ops import combine_states, retention_recurrent
from retnet.parallel import sequence
from retnet.parallel.config import ParallelConfig
from retnet.parallel.sequence import slice_state
from retnet.parallel.world import join
from retnet.train.step import Accumulation
from tests.parallel.launch import run
from tests.parallel.training import CPU, Run, gradients, losses, make_batch, own_rows, small_config

STEPS = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "sizes"),
    [(2, {"sequence": 2}), (4, {"sequence": 2}), (4, {"sequence": 2, "shard": 2})],
    ids=str,
)
def test_losses_of_twenty_steps(num_processes: int, sizes: dict[str, Any]) -> None:
    """To 1e-5, through AdamW and clipping, with replicas and with shards."""
    model, options = small_config(score_norm="paper"), {"segments": True}
    expected = losses(ParallelConfig(), model, STEPS, options)
    results = run(losses, num_processes, ParallelConfig(**sizes), model, STEPS, options)
    assert all(result == results[0] for result in results)
    assert results[0][0] == pytest.approx(expected[0], abs=1e-5)
    assert results[0][1] == pytest.approx(expected[1], rel=1e-5)


Found = tuple[Tensor, list[Tensor], dict[str, Tensor]]


def two_steps(parallel: ParallelConfig, segments: bool, num_windows: int) -> Found:
    """In fp64, two steps that carry the state: the second's loss, state and gradients.

    Rows of several windows go through `Accumulation`, and gradients from window to window.
    """
    with join(parallel, CPU) as world:
        model = Run(world, small_config(score_norm="decay"), torch.float64).module
        accumulation = Accumulation(
            loss=model,
            bos_id=0,
            num_parts=1,
            num_windows=num_windows,
            forward=lambda part, window: nullcontext(),
            backward=model.accumulating,
        )
        state = None
        for step in range(2):
            model.zero_grad()
            rows = own_rows(make_batch(step, segments=segments), world)
            starts = torch.zeros(len(rows.tokens), dtype=torch.int64)
            loss, state = accumulation.run(Batch(*rows, starts), state)
        assert state is not None
        return world.mean(loss), [*state.layers, state.position], dict(gradients(model))


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("num_windows", [1, 2])
@pytest.mark.parametrize("segments", [False, True])
def test_gradients_are_exact(num_processes: int, num_windows: int, segments: bool) -> None:
    """To 1e-10 of each weight's largest, with documents that begin and end anywhere, a carried
    state, and gradients through the states between windows."""
    expected = two_steps(ParallelConfig(), segments, num_windows)
    parallel = ParallelConfig(sequence=num_processes)
    for got in run(two_steps, num_processes, parallel, segments, num_windows):
        torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=0)
        for mine, theirs in zip(got[1], expected[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        for name, grad in expected[2].items():
            assert (got[2][name] - grad).abs().max() < 1e-10 * grad.abs().max(), name


def bytes_exchanged(parallel: ParallelConfig, context: int) -> list[int]:
    """Bytes that this process receives from each exchange of a step, forwards and backwards."""
    received: list[int] = []
    gather = dist.all_gather

    def counted(everyones: list[Tensor], own: Tensor, **options: Any) -> Any:
        received.append(len(everyones) * own.numel() * own.element_size())
        return gather(everyones, own, **options)

    with join(parallel, CPU) as world:
        training = Run(world, small_config(), torch.float32)
        received.clear()
        sequence.dist.all_gather = counted
        try:
            training.step(0, context=context)
        finally:
            sequence.dist.all_gather = gather
    return received


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_length() -> None:
    """One state a layer forwards; backwards its gradient, and that of the state after the row."""
    short, long = (run(bytes_exchanged, 2, ParallelConfig(sequence=2), size) for size in (16, 128))
    assert short == long
    state = 4 * 4 * 4 * 8 * 16
    assert short[0] == [2 * state, 2 * state, 4 * state, 4 * state]


@pytest.mark.parametrize("segments", [False, True])
def test_the_state_of_a_slice(segments: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 9, 3, 4, dtype=torch.float64, generator=rng)
    log_decay = torch.tensor([-0.7, -0.1, 0.0], dtype=torch.float64)
    ids = torch.tensor([[0] * 9, [0, 0, 1, 1, 1, 2, 2, 2, 2]]) if segments else None
    _, expected = retention_recurrent(q, k, v, log_decay, segment_ids=ids)
    torch.testing.assert_close(slice_state(k, v, log_decay, ids), expected)


def test_the_weights_are_those_of_combining() -> None:
    """Three slices and the state before them, folded one after the other."""
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(4, 2, 3, 4, 5, dtype=torch.float64, generator=rng)
    log_decay = torch.tensor([-0.7, -0.1, 0.0], dtype=torch.float64)
    part = sequence.SequenceSlice(
        tokens=slice(0, 6),
        first=torch.zeros(2),
        after=torch.zeros(2),
        visible=None,
        rank=0,
        size=3,
        group=None,  # type: ignore[arg-type]
    )
    weights = part._weights(log_decay, states)
    folded = states[0]
    for number in range(4):
        if number:
            folded = combine_states(folded, states[number], log_decay, 6)
        mixed = sequence._mixed(weights[:, :, number], states)
        torch.testing.assert_close(mixed, folded)
