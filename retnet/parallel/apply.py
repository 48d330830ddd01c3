"""A finished module that returns its loss, spread over the processes of a world."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from retnet.model import RetNet, RetNetState
from retnet.ops import retention_chunkwise
from retnet.ops.reference import accumulation_dtype
from retnet.parallel.heads import split_heads_
from retnet.parallel.sequence import SequenceSlice
from retnet.parallel.world import World
from retnet.position import Retention


class Distributed(nn.Module):
    """What a training loop calls instead of the module: the same call, spread over the world.

    It takes the rows that `World.data_rank` says, and returns the mean loss over the tokens that
    this process reads, and the state. A backward pass leaves the gradient of the mean loss over all
    processes, whole or sharded as the weights are.

    Attributes:
        world: the processes.
    """

    def __init__(self, runner: nn.Module, world: World) -> None:
        super().__init__()
        self._runner = runner
        self.world = world

    @property
    def module(self) -> nn.Module:
        """The module that was distributed; its weights may be DTensors now."""
        module = self._runner
        if isinstance(module, DistributedDataParallel):
            module = module.module
        return module

    @property
    def model(self) -> RetNet:
        """The RetNet in it, for its weights and their names; to call it, see `open_model`."""
        return _model(self.module)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None = None,
        state: RetNetState | None = None,
        retain: Retention = retention_chunkwise,
    ) -> tuple[Tensor, RetNetState]:
        """The mean loss in nats and the state after; tokens, targets, segment_ids: [B, T].

        Processes of one sequence are given the same whole rows; in training, each reads its slice
        of them.
        """
        if self.training and self.world.config.sequence > 1:
            return self._slice_forward(tokens, targets, segment_ids, state, retain)
        return self._forward(tokens, targets, segment_ids, state, retain)

    def _slice_forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None,
        state: RetNetState | None,
        retain: Retention,
    ) -> tuple[Tensor, RetNetState]:
        assert self.world.mesh is not None
        position = None if state is None else state.position
        group = self.world.mesh.get_group("sequence")
        part = SequenceSlice.of(tokens, segment_ids, position, group)
        layers = self._empty_layers(len(tokens)) if state is None else state.layers
        loss, after = self._forward(
            part.cut(tokens),
            part.cut(targets),
            None if segment_ids is None else part.cut(segment_ids),
            RetNetState(layers, part.first),
            part.retain(retain),
        )
        return loss, RetNetState(after.layers, part.after)

    def _empty_layers(self, batch: int) -> tuple[Tensor, ...]:
        """The states of this process's heads before the first token."""
        config, weight = self.model.config, self.model.head_weight
        heads, *rest = config.state_shape
        shape = (batch, heads // self.world.config.tensor, *rest)
        dtype = accumulation_dtype(weight.dtype)
        empty = torch.zeros(shape, dtype=dtype, device=self.world.device)
        return (empty,) * config.num_layers

    def _forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None,
        state: RetNetState | None,
        retain: Retention,
    ) -> tuple[Tensor, RetNetState]:
        result = self._runner(tokens, targets, segment_ids, state, retain=retain)
        if isinstance(self._runner, FSDPModule) and not torch.is_grad_enabled():
            # Else only a backward pass would, and the next forward pass miss an update in between.
            self._runner.reshard()
        return result

    @contextmanager
    def accumulating(self, is_last: bool) -> Iterator[None]:
        """For the forward and backward pass of one part of a step: gradients add up, and replicas
        exchange them in the last part alone. Shards exchange in each: to wait would take the memory
        of the whole gradient."""
        if isinstance(self._runner, DistributedDataParallel) and not is_last:
            with self._runner.no_sync():
                yield
            return
        if isinstance(self._runner, FSDPModule):
            self._runner.set_requires_all_reduce(is_last)
        yield

    @contextmanager
    def open_model(self) -> Iterator[RetNet]:
        """Inside, the RetNet may be called itself, without gradients: to score or to generate.

        Where weights are sharded or heads split, all processes must make the same calls.
        """
        if isinstance(self._runner, FSDPModule):
            self._runner.unshard()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            if isinstance(self._runner, FSDPModule):
                self._runner.reshard()


def distribute(module: nn.Module, world: World) -> Distributed:
    """Spread a module over a world: applied from outside, once, before an optimizer is made.

    Heads are split among the processes of a tensor group. Where each process then holds whole
    weights, replicas exchange gradients by DDP, else by FSDP2.

    module: called as module(tokens, targets, segment_ids, state, retain=...) -> (loss, state), with
        a RetNet as its attribute `model`; in training mode, on the world's device, with the same
        weights everywhere.

    Raises ValueError where heads or widths don't divide.
    """
    if world.size == 1:
        return Distributed(module, world)
    assert world.weight_mesh is not None
    if world.config.tensor == world.config.shard == 1:
        return Distributed(_replicate(module), world)
    if world.config.tensor > 1:
        split_heads_(_model(module), world.weight_mesh["tensor"])
    if world.config.tensor < world.size:
        _shard(module, world.weight_mesh)
    return Distributed(module, world)


def _replicate(module: nn.Module) -> nn.Module:
    """Whole weights on every process, gradients averaged over all (DDP)."""
    replicated = DistributedDataParallel(module, gradient_as_bucket_view=True)
    # DDP packs gradients in another order after the first backward pass, which sums three or more
    # of them with other roundings: step one must be like the steps after it, and like the first of
    # a run resumed.
    loss, _ = _rehearse(replicated)
    loss.backward()
    replicated.zero_grad(set_to_none=True)
    return replicated


def _shard(module: nn.Module, weight_mesh: DeviceMesh) -> None:
    """A part of each weight on every process, gathered where it is used (FSDP2); in place."""
    names = ("shard",) if weight_mesh["replicate"].size() == 1 else ("replicate", "shard")
    mesh = weight_mesh[names]
    for block in _model(module).backbone.layers:
        fully_shard(block, mesh=mesh)
    root = fully_shard(module, mesh=mesh)
    # The module must be the first that runs, or its blocks would take themselves for roots.
    with torch.no_grad():
        _rehearse(module)
    root.reshard()  # which waits for a backward pass otherwise, with weights no optimizer may see


def _rehearse(module: nn.Module) -> tuple[Tensor, RetNetState]:
    """A call that leaves no trace in the random numbers."""
    device = next(module.parameters()).device
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return module(tokens, tokens)


def _model(module: nn.Module) -> RetNet:
    model = module.model
    assert isinstance(model, RetNet), f"module.model must be a RetNet, got {type(model).__name__}"
    return model
