"""AdamW over a model's parameters, weight decay on matrices only."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from retnet.train.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW: matrices decay; embeddings, a head tied to them, norms, biases don't.

    No group mixes plain tensors with distributed ones, or those of two meshes: one kernel updates
    all that a group holds.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    others: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for weight in model.parameters():
        is_decayed = weight.ndim >= 2 and id(weight) not in embeddings
        mesh = weight.device_mesh if isinstance(weight, DTensor) else None
        (decayed if is_decayed else others).setdefault(mesh, []).append(weight)
    return torch.optim.AdamW(
        [
            *({"params": group, "weight_decay": config.weight_decay} for group in decayed.values()),
            *({"params": group, "weight_decay": 0.0} for group in others.values()),
        ],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=all(weight.device.type in ("cpu", "cuda") for weight in model.parameters()),
    )


def set_learning_rate_(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this learning rate in every group from now on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
