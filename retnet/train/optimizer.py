"""AdamW over a model's parameters, weight decay on matrices only."""

import torch
from torch import nn

from retnet.train.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices decay; embeddings, a head tied to them, norms, biases don't."""
    parameters = list(model.parameters())
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed = [weight for weight in parameters if weight.ndim >= 2 and id(weight) not in embeddings]
    is_decayed = {id(weight) for weight in decayed}
    others = [weight for weight in parameters if id(weight) not in is_decayed]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = all(weight.device.type in ("cpu", "cuda") for weight in parameters)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def set_learning_rate_(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this learning rate in every group from now on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
