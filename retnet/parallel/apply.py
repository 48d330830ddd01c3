"""Distribution, applied from outside to a finished module."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from retnet.parallel.world import World


def distribute(module: nn.Module, world: World) -> nn.Module:
    """A module that holds a RetNet as `.model`, spread over the processes."""
    return module


def accumulating(module: nn.Module, is_last: bool) -> AbstractContextManager[object]:
    """What a forward and backward pass runs in: gradients are exchanged in a step's last one."""
    return nullcontext()
