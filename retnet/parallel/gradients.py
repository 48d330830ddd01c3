"""The norm of gradients, wherever their parts are."""

from collections.abc import Iterable

import torch
from torch import Tensor


def clip_gradients_(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to a norm of at most `max_norm`: the norm that they had."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
