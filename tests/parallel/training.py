"""A small training run that any number of processes can do, by the library's parts alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retnet.config import ModelConfig
from retnet.model import RetNet
from retnet.parallel.apply import Distributed, distribute
from retnet.parallel.config import ParallelConfig
from retnet.parallel.gradients import clip_gradients_
from retnet.parallel.world import World, join
from retnet.train.config import OptimizerConfig
from retnet.train.objective import NextTokenLoss
from retnet.train.optimizer import make_optimizer

CPU = torch.device("cpu")
BATCH, CONTEXT = 4, 16


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor
    segment_ids: Tensor | None


def small_config(**changes: Any) -> ModelConfig:
    small: dict[str, Any] = dict(vocab_size=61, d_model=32, num_layers=2, num_heads=4)
    return ModelConfig(**{**small, **changes})


def make_batch(step: int, *, segments: bool = False, context: int = CONTEXT) -> Batch:
    """The whole batch of a step, the same on every process."""
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(61, (BATCH, context + 1), generator=generator)
    ids = None
    if segments:
        starts = torch.rand(BATCH, context, generator=generator) < 0.2
        starts[0, context // 2] = True  # a document that begins exactly where a slice does
        starts[1] = False  # one that runs through all slices
        ids = starts.cumsum(1)
    return Batch(text[:, :-1], text[:, 1:], ids)


def own_rows(batch: Batch, world: World) -> Batch:
    """The rows that this process reads."""
    rows = BATCH // world.data_size
    part = slice(world.data_rank * rows, (world.data_rank + 1) * rows)
    return Batch(*(None if x is None else x[part] for x in batch))


class Run:
    """A model, its optimizer and the world they are spread over."""

    def __init__(self, world: World, model: ModelConfig, dtype: torch.dtype) -> None:
        self.world = world
        weights = torch.Generator().manual_seed(0)
        module = NextTokenLoss(RetNet(model, generator=weights).to(dtype))
        self.module: Distributed = distribute(module, world)
        # A larger eps than AdamW's own: it divides by the size of gradients, and what is zero but
        # for rounding, in whatever order it was summed, would become a step like any other.
        config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, eps=1e-6)
        self.optimizer = make_optimizer(self.module, config)
        self.norms: list[float] = []

    def update(self) -> None:
        self.norms.append(float(clip_gradients_(self.module.parameters(), 0.5)))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, step: int, **options: Any) -> float:
        """One step of training; the loss over all processes."""
        torch.manual_seed(1000 * step + self.world.token_rank)
        loss, _ = self.module(*own_rows(make_batch(step, **options), self.world))
        loss.backward()
        self.update()
        return float(self.world.mean(loss))


def losses(
    parallel: ParallelConfig, model: ModelConfig, steps: int, options: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """The losses and gradient norms of some steps, in as many processes as call this."""
    with join(parallel, CPU) as world:
        run = Run(world, model, torch.float32)
        return [run.step(step, **options) for step in range(steps)], run.norms


def full(x: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes."""
    return x.full_tensor() if type(x).__name__ == "DTensor" else x


def gradients(module: Distributed) -> Iterator[tuple[str, Tensor]]:
    for name, weight in module.model.named_parameters():
        assert weight.grad is not None, name
        yield name, full(weight.grad).clone()
