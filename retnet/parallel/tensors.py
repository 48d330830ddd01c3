"""Tensors of which every process holds a part."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from retnet.parallel.world import World

# How [B, H, ...] lies on the dimensions of a mesh.
_PLACES: dict[str, Placement] = {
    "replicate": Shard(0),
    "shard": Shard(0),
    "sequence": Replicate(),
    "tensor": Shard(1),
}


def whole(x: Tensor) -> Tensor:
    """All of a tensor, on the CPU; every process must ask for it."""
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().cpu()


def with_rows(x: Tensor, world: World) -> Tensor:
    """This process's rows and heads [b, h, ...] of a tensor as a part of [B, H, ...]; [b] of [B].

    The result shares the memory of x.
    """
    if world.mesh is None:
        return x
    places = [_PLACES[name] for name in world.mesh.mesh_dim_names or ()]
    if x.dim() == 1:
        places = [Replicate() if place == Shard(1) else place for place in places]
    return DTensor.from_local(x, world.mesh, places, run_check=False)


def local(x: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return x.to_local() if isinstance(x, DTensor) else x
