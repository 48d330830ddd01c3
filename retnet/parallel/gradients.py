"""The norm of gradients that lie in parts on several processes, and clipping by it."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from retnet.parallel.tensors import local


@torch.no_grad()
def clip_gradients_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down so that their norm together is max_norm at most.

    Each number of a gradient counts once, wherever it lies and on however many processes. All
    processes of the world must call this, with the same parameters.

    Returns:
        The norm before, a plain scalar, the same on every process.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = _norm(gradients)
    # As torch.nn.utils.clip_grad_norm_ has it; a norm that is not finite goes into the weights,
    # where it is found.
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    by_device_and_dtype: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for gradient in map(local, gradients):
        by_device_and_dtype[gradient.device, gradient.dtype].append(gradient)
    for (device, _), group in by_device_and_dtype.items():
        torch._foreach_mul_(group, scale.to(device))
    return norm


def _norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients as one vector."""
    parts: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        parts[_groups(gradient)].append(local(gradient))
    norms = []
    for groups, tensors in parts.items():
        norm = torch.nn.utils.get_total_norm(tensors)
        if groups:
            squares = norm.double() ** 2
            for group in groups:
                dist.all_reduce(squares, group=group)
            norm = squares.sqrt().to(norm.dtype)
        norms.append(norm)
    return torch.nn.utils.get_total_norm(norms)


def _groups(gradient: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The process groups over which a gradient lies in parts."""
    if not isinstance(gradient, DTensor):
        return ()
    mesh, placements = gradient.device_mesh, gradient.placements
    assert not any(placement.is_partial() for placement in placements), "a gradient is not summed"
    # Not is_shard: what is split twice along one dimension, heads and then shards, is none to it.
    sharded = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    return tuple(mesh.get_group(dim) for dim in sharded if mesh.size(dim) > 1)
