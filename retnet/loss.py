"""The loss of next tokens, with and without all logits in memory at once."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from retnet.ops.precision import without_autocast

IGNORED = -100

# Logits held at a time, as numbers: 32 MB in fp32.
_CHUNK_NUMBERS = 2**23


def next_token_loss(logits: Tensor, targets: Tensor, *, ignore_index: int = IGNORED) -> Tensor:
    """Mean cross-entropy in nats of the tokens that came next.

    logits: [..., vocab], any float dtype, summed in fp32
    targets: [...] int64; those equal to ignore_index are left out
    """
    return F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=ignore_index
    )


def linear_next_token_loss(
    features: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = IGNORED
) -> Tensor:
    """`next_token_loss(features @ weight.T, targets)` without [..., vocab] logits.

    Some rows' logits are made at a time, and with them their part of both gradients, so that the
    backward pass only scales these. Under autocast the products are in its dtype.

    features: [..., D]   weight: [vocab, D]   targets: [...] int64
    """
    return _LinearLoss.apply(  # type: ignore[no-untyped-call]
        features.flatten(0, -2), weight, targets.flatten(), ignore_index
    )


@torch.no_grad()
def linear_token_costs(
    features: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = IGNORED
) -> Tensor:
    """What each target costs, in nats, [...] fp32, 0 where it is ignored; without a gradient."""
    rows, flat = features.flatten(0, -2), targets.flatten()
    costs = [
        F.cross_entropy(
            F.linear(rows[part], weight).float(),
            flat[part],
            ignore_index=ignore_index,
            reduction="none",
        )
        for part in _parts(len(rows), len(weight))
    ]
    return torch.cat(costs).view(targets.shape) if costs else targets.new_zeros(targets.shape)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
    ) -> Tensor:
        kind = features.device.type
        dtype = features.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        with without_autocast(kind):
            rows, matrix = features.to(dtype), weight.to(dtype)
            loss, grads = _loss_and_gradients(rows, matrix, targets, ignore_index)
        ctx.save_for_backward(grads[0].to(features.dtype), grads[1].to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_features, grad_weight = ctx.saved_tensors
        return grad_features * grad_loss, grad_weight * grad_loss, None, None


def _loss_and_gradients(
    rows: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The mean loss, and its gradients of rows [N, D] and weight [vocab, D]."""
    exact = torch.float64 if rows.dtype == torch.float64 else torch.float32
    counted = targets != ignore_index
    num_counted = counted.sum()
    grad_rows = torch.empty_like(rows)
    grad_weight = torch.zeros_like(weight, dtype=exact)
    total = torch.zeros((), dtype=exact, device=rows.device)
    for part in _parts(len(rows), len(weight)):
        logits = (rows[part] @ weight.mT).to(exact)
        place = targets[part].where(counted[part], 0)[:, None]
        log_shares = logits.log_softmax(1)
        total -= log_shares.gather(1, place).where(counted[part, None], 0).sum()
        # Softmax less one at the target, from here on in place.
        slope = log_shares.exp_()
        slope.scatter_add_(1, place, slope.new_full((), -1.0).expand(place.shape))
        slope.mul_(counted[part, None].to(exact) / num_counted)
        slope = slope.to(rows.dtype)
        grad_rows[part] = slope @ weight
        grad_weight += slope.mT @ rows[part]
    return total / num_counted, (grad_rows, grad_weight)


def _parts(num_rows: int, vocab_size: int) -> list[slice]:
    """The rows in parts of which each has about _CHUNK_NUMBERS logits."""
    size = max(64, _CHUNK_NUMBERS // vocab_size)
    return [slice(start, start + size) for start in range(0, num_rows, size)]
