"""A head's norm and the gate, in one pass over memory: norm(x) * swish(gate), and its gradients."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retnet.ops.triton.configs import FUSED


@triton.jit
def _normed(x, inside, N: tl.constexpr, eps, CENTRED: tl.constexpr):
    """x over its root mean square, less its mean where CENTRED, by rows; and one over the root."""
    if CENTRED:
        x = tl.where(inside, x - tl.sum(x, axis=1)[:, None] / N, 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / N + eps)[:, None]
    return x * scale, scale


@triton.jit
def gating_kernel(
    x,  # [R, N]
    gate,  # [R, N]
    out,  # [R, N]
    R,
    eps,
    N: tl.constexpr,
    CENTRED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some rows."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = tl.arange(0, BLOCK_N)
    inside = (r < R)[:, None] & (n < N)[None, :]
    place = r[:, None] * N + n[None, :]
    gates = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    normed, _ = _normed(values, inside, N, eps, CENTRED)
    result = normed * gates * tl.sigmoid(gates)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gating_backward_kernel(
    x,  # [R, N]
    gate,  # [R, N]
    grad_out,  # [R, N]
    grad_x,  # [R, N]
    grad_gate,  # [R, N]
    R,
    eps,
    N: tl.constexpr,
    CENTRED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some rows."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = tl.arange(0, BLOCK_N)
    inside = (r < R)[:, None] & (n < N)[None, :]
    place = r[:, None] * N + n[None, :]
    gates = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    grads = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32)
    normed, scale = _normed(values, inside, N, eps, CENTRED)
    open_share = tl.sigmoid(gates)
    to_gate = grads * normed * open_share * (1 + gates * (1 - open_share))
    tl.store(grad_gate + place, to_gate.to(grad_gate.dtype.element_ty), mask=inside)
    to_normed = grads * gates * open_share
    to_x = to_normed - normed * tl.sum(to_normed * normed, axis=1)[:, None] / N
    if CENTRED:
        to_x -= tl.sum(to_normed, axis=1)[:, None] / N
    tl.store(grad_x + place, (to_x * scale).to(grad_x.dtype.element_ty), mask=inside)


def norm_and_gate(x: Tensor, gate: Tensor, kind: str, eps: float) -> Tensor:
    """norm(x) * swish(gate), with gradients.

    x, gate: [..., V] of one shape; kind: "layernorm" or "rmsnorm", over V and without weights.
    """
    return _gating(x, gate, kind == "layernorm", eps)


def _sizes(x: Tensor) -> dict[str, int]:
    columns = x.shape[-1]
    block_n = int(triton.next_power_of_2(columns))
    return {"N": columns, "BLOCK_R": max(1, 2048 // block_n), "BLOCK_N": block_n}


@torch.library.custom_op("retnet::triton_gating", mutates_args=())
def _gating(x: Tensor, gate: Tensor, centred: bool, eps: float) -> Tensor:
    x, gate = x.contiguous(), gate.contiguous()
    out, sizes = torch.empty_like(x), _sizes(x)
    rows = x.numel() // max(1, sizes["N"])
    if rows:
        gating_kernel[(triton.cdiv(rows, sizes["BLOCK_R"]),)](
            x, gate, out, rows, eps, CENTRED=centred, **sizes, num_warps=4, **FUSED
        )
    return out


@torch.library.custom_op("retnet::triton_gating_backward", mutates_args=())
def _gating_backward(
    x: Tensor, gate: Tensor, grad_out: Tensor, centred: bool, eps: float
) -> tuple[Tensor, Tensor]:
    x, gate, grad_out = x.contiguous(), gate.contiguous(), grad_out.contiguous()
    grad_x, grad_gate, sizes = torch.empty_like(x), torch.empty_like(gate), _sizes(x)
    rows = x.numel() // max(1, sizes["N"])
    if rows:
        gating_backward_kernel[(triton.cdiv(rows, sizes["BLOCK_R"]),)](
            *(x, gate, grad_out, grad_x, grad_gate, rows, eps),
            CENTRED=centred,
            **sizes,
            num_warps=4,
            **FUSED,
        )
    return grad_x, grad_gate


@_gating.register_fake
def _(x: Tensor, gate: Tensor, centred: bool, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@_gating_backward.register_fake
def _(
    x: Tensor, gate: Tensor, grad_out: Tensor, centred: bool, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), gate.new_empty(gate.shape)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gate, ctx.centred, ctx.eps = inputs
    ctx.save_for_backward(x, gate)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return *_gating_backward(*ctx.saved_tensors, grad_out, ctx.centred, ctx.eps), None, None


_gating.register_autograd(_backward, setup_context=_save_inputs)
