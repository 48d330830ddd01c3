"""The processes of a run: who they are, what each holds, and how they agree."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from retnet.parallel.config import ParallelConfig
from retnet.parallel.roll_call import RollCall, connect, naming_lost_ranks

# From the outermost to the innermost, whose processes are numbered one after the other, so that
# those that exchange most are on one machine.
DIMENSIONS = ("replicate", "shard", "sequence", "tensor")

# Groups live as long as the process. DDP would free its own while it holds the interpreter, and
# wait for gloo's thread, which after a last exchange waits for the interpreter: for ever.
_KEPT_GROUPS: list[dist.ProcessGroup] = []


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run; alone, everything here is a trivial answer.

    Attributes:
        config: how the work is spread.
        device: where this process computes.
        rank, size: its number, and how many there are.
        mesh: the processes by what they read and compute: replicate, shard, sequence, tensor. None
            for a process alone.
        weight_mesh: the same processes by what they keep of the weights: replicate, shard, tensor.
            Those that read slices of one sequence share the shards too.
        roll_call: tells which processes are gone.
    """

    config: ParallelConfig
    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    weight_mesh: DeviceMesh | None = None
    roll_call: RollCall | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and shows."""
        return self.rank == 0

    @cached_property
    def _coordinates(self) -> dict[str, int]:
        coordinates, rest = {}, self.rank
        for name in reversed(DIMENSIONS[1:]):
            rest, coordinates[name] = divmod(rest, getattr(self.config, name))
        return {**coordinates, "replicate": rest}

    @property
    def tensor_rank(self) -> int:
        """Which heads: those of equal parts of all."""
        return self._coordinates["tensor"]

    @property
    def sequence_rank(self) -> int:
        """Which slice of every row's context."""
        return self._coordinates["sequence"]

    @property
    def data_rank(self) -> int:
        """Which rows of a batch of B: [data_rank B / data_size, (data_rank + 1) B / data_size)."""
        return self._coordinates["replicate"] * self.config.shard + self._coordinates["shard"]

    @property
    def data_size(self) -> int:
        """How many processes, or groups of them, read different rows."""
        return self.config.replicas(self.size) * self.config.shard

    @property
    def token_rank(self) -> int:
        """Which tokens, rows and slice together: equal for processes that must draw one dropout."""
        return self.data_rank * self.config.sequence + self.sequence_rank

    def any(self, flag: bool) -> bool:
        """Whether it is true of any process; all must ask, and all hear the same."""
        if self.size == 1:
            return flag
        # On the CPU, whatever the device: it need not wait for what a GPU is still doing.
        answer = torch.tensor(int(flag))
        dist.all_reduce(answer, op=dist.ReduceOp.MAX)
        return bool(answer)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over everything that is read: over all processes, as each reads as much."""
        if self.size == 1:
            return x.detach()
        # Not ReduceOp.AVG, which gloo has not.
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def agree(self, values: Sequence[float]) -> list[float]:
        """The first process's numbers, for all."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(numbers, src=0)
        return numbers.tolist()

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)


@contextmanager
def join(config: ParallelConfig, device: torch.device) -> Iterator[World]:
    """The world that `torchrun` describes in the environment; without it, this process alone.

    device: "cpu", or "cuda" without a number: each process takes that of its place on its machine.
    Raises ValueError where the number of processes or the device does not fit, and RankLostError
    where an exchange inside fails because a process is gone. All leave together, unless one raises.
    """
    rank, size = _numbers()
    config.replicas(size)  # raises where they don't come out even
    if size == 1:
        yield World(config=config, device=device)
        return
    device = _own_device(device)
    timeout = timedelta(seconds=config.timeout_s)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timeout)
    assert dist.group.WORLD is not None
    _KEPT_GROUPS.append(dist.group.WORLD)
    roll_call = None
    try:
        roll_call = connect(rank, size)
        mesh, weight_mesh = _meshes(config, rank, size, device.type)
        world = World(
            config=config,
            device=device,
            rank=rank,
            size=size,
            mesh=mesh,
            weight_mesh=weight_mesh,
            roll_call=roll_call,
        )
        with naming_lost_ranks(roll_call):
            yield world
            world.barrier()
    finally:
        if roll_call is not None:
            roll_call.stop()
        dist.destroy_process_group()


def _numbers() -> tuple[int, int]:
    """This process's rank and how many there are."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    size = int(os.environ["WORLD_SIZE"])
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise ValueError(
            f"the environment has WORLD_SIZE={size} but no {', '.join(missing)}; start the "
            "processes with torchrun, or unset WORLD_SIZE"
        )
    return int(os.environ.get("RANK", "0")), size


def _own_device(device: torch.device) -> torch.device:
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"device must be cpu or cuda for several processes, got {device}")
    if ":" in str(device):
        raise ValueError(
            f"device must be 'cuda' without a number for several processes, got {device}; each "
            "takes the one of its place on its machine"
        )
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise ValueError(
            f"device cuda has {count} GPUs on this machine, and this is its process number "
            f"{place + 1}; start torchrun with --nproc-per-node {count}"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def _meshes(
    config: ParallelConfig, rank: int, size: int, device_type: str
) -> tuple[DeviceMesh, DeviceMesh]:
    """The mesh of tokens and the mesh of weights; see `World`."""
    ranks = torch.arange(size).view(-1, config.shard, config.sequence, config.tensor)
    weight_ranks = ranks.flatten(1, 2)
    timeout = timedelta(seconds=config.timeout_s)
    replicate, shard, sequence, tensor = (_group(ranks, dim, rank, timeout) for dim in range(4))
    kept = shard if config.sequence == 1 else _group(weight_ranks, 1, rank, timeout)
    return (
        DeviceMesh.from_group(
            [replicate, shard, sequence, tensor], device_type, ranks, mesh_dim_names=DIMENSIONS
        ),
        DeviceMesh.from_group(
            [replicate, kept, tensor],
            device_type,
            weight_ranks,
            mesh_dim_names=("replicate", "shard", "tensor"),
        ),
    )


def _group(ranks: Tensor, dim: int, rank: int, timeout: timedelta) -> dist.ProcessGroup:
    """The group of the ranks that differ from this one along one dimension alone."""
    # Not init_device_mesh: its groups wait for torch's own half an hour, whatever the timeout.
    lines = ranks.movedim(dim, -1).flatten(0, -2)
    own = lines[(lines == rank).any(dim=1)][0].tolist()
    return dist.new_group(own, timeout=timeout, use_local_synchronization=True)
