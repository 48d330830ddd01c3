"""Chunkwise retention (Eq. 7) by the kernels, with gradients, as operators that compilers know.

States go to memory between super-chunks of some hundred tokens only; within one, chunks are tiles
of products that stay on the chip. The backward pass computes the states again.
"""

import functools
from dataclasses import dataclass
from math import log
from typing import Any

import torch
import triton
from torch import Tensor

from retnet.ops.reference import segment_runs
from retnet.ops.triton.chips import INTERPRETED, arch_of
from retnet.ops.triton.configs import FUSED, Kernel, config_for, super_chunk
from retnet.ops.triton.outputs import outputs_kernel
from retnet.ops.triton.states import states_kernel


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_ids: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Eq. 7, as `retnet.ops.retention_chunkwise`; no gradient of log_decay. chunk_size is not
    heeded: the table of configurations has the chunks. States within the call are kept in q's
    dtype, one in some hundred tokens; that in fp16 ends at 65,504.
    """
    if log_decay.requires_grad:
        raise ValueError(
            "log_decay must not require a gradient on the 'triton' backend, which has none for it; "
            "detach it, or pass backend='reference'"
        )
    batch, _, heads, key_size = q.shape
    if state is None:
        state = q.new_zeros(batch, heads, key_size, v.shape[3], dtype=torch.float32)
    runs = None if segment_ids is None else segment_runs(segment_ids, q).int()
    return _chunkwise(q, k, v, state, log_decay, runs)


@dataclass(frozen=True)
class _Launch:
    """What all kernels of a call share.

    log2_decay: [H] fp32, on the device; runs: [B, T] int32, contiguous, or None.
    """

    log2_decay: Tensor
    runs: Tensor | None
    super_chunk: int
    arch: str

    @classmethod
    def of(cls, q: Tensor, log_decay: Tensor, runs: Tensor | None) -> "_Launch":
        return cls(
            log2_decay=_log2(log_decay, q.device),
            runs=None if runs is None else runs.contiguous(),
            super_chunk=super_chunk(q.shape[1], torch.finfo(q.dtype).bits),
            arch=arch_of(q.device),
        )

    def states(
        self, a: Tensor, b: Tensor, first: Tensor, *, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """`states_kernel`: the states [B, H, super-chunks, P, N] in a's dtype, and the last one."""
        batch, tokens, heads, rows = a.shape
        columns = b.shape[3]
        num_super = triton.cdiv(tokens, self.super_chunk)
        states = a.new_empty(batch, heads, num_super, rows, columns)
        last = torch.empty_like(first)
        sizes, options = self._constants("states", a, rows, columns)
        blocks = triton.cdiv(rows, sizes["BLOCK_P"]), triton.cdiv(columns, sizes["BLOCK_N"])
        states_kernel[(*blocks, batch * heads)](
            *(a, b, self._runs(a), self.log2_decay, first, states, last),
            *(*a.stride()[:3], *b.stride()[:3], tokens, heads),
            **sizes,
            REVERSE=reverse,
            **options,
        )
        return states, last

    def outputs(
        self, a: Tensor, b: Tensor, c: Tensor, states: Tensor, *, turned: bool, reverse: bool
    ) -> Tensor:
        """`outputs_kernel`: like c, contiguous."""
        batch, tokens, heads, rows = a.shape
        columns = c.shape[3]
        out = torch.empty(c.shape, dtype=c.dtype, device=c.device)
        sizes, options = self._constants("outputs", a, rows, columns)
        blocks = triton.cdiv(columns, sizes["BLOCK_N"]), triton.cdiv(tokens, sizes["CHUNK"])
        outputs_kernel[(*blocks, batch * heads)](
            *(a, b, c, self._runs(a), self.log2_decay, states, out),
            *(*a.stride()[:3], *b.stride()[:3], *c.stride()[:3], tokens, heads),
            **sizes,
            TURNED=turned,
            REVERSE=reverse,
            **options,
        )
        return out

    def _runs(self, unused: Tensor) -> Tensor:
        return unused if self.runs is None else self.runs

    def _constants(
        self, kernel: Kernel, a: Tensor, rows: int, columns: int
    ) -> tuple[dict[str, int], dict[str, Any]]:
        config = config_for(self.arch, kernel, rows, columns, a.dtype)
        sizes = {
            "P": rows,
            "N": columns,
            "SUPER": self.super_chunk,
            "CHUNK": config.chunk,
            "BLOCK_P": config.block_p,
            "BLOCK_N": config.block_n,
        }
        options = {
            "HAS_RUNS": self.runs is not None,
            "UPCAST": INTERPRETED and a.dtype == torch.bfloat16,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            **FUSED,
        }
        return sizes, options


def _log2(log_decay: Tensor, device: torch.device) -> Tensor:
    """log2(gamma) [H] fp32 on the device; from the CPU it is copied there once."""
    if log_decay.device.type == "cpu":
        return _log2_of(tuple(log_decay.tolist()), device)
    return (log_decay.double() / log(2)).float()


@functools.lru_cache(maxsize=64)
def _log2_of(log_decay: tuple[float, ...], device: torch.device) -> Tensor:
    values = torch.tensor(log_decay, dtype=torch.float64) / log(2)
    return values.float().to(device)


def _with_columns_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("retnet::triton_chunkwise", mutates_args=())
def _chunkwise(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, runs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The outputs, contiguous, and the state after them."""
    if q.shape[1] == 0:
        return v.new_empty(v.shape), state.clone()
    q, k, v = map(_with_columns_together, (q, k, v))
    launch = _Launch.of(q, log_decay, runs)
    states, last = launch.states(k, v, state.contiguous(), reverse=False)
    return launch.outputs(q, k, v, states, turned=False, reverse=False), last


@torch.library.custom_op("retnet::triton_chunkwise_backward", mutates_args=())
def _chunkwise_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    log_decay: Tensor,
    runs: Tensor | None,
    grad_out: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, contiguous, and of the state before them."""
    if q.shape[1] == 0:
        return q.clone(), k.clone(), v.clone(), grad_state.clone()  # empty, all but the last
    q, k, v, grad_out = map(_with_columns_together, (q, k, v, grad_out))
    launch = _Launch.of(q, log_decay, runs)
    states, _ = launch.states(k, v, state.contiguous(), reverse=False)
    grad_q = launch.outputs(grad_out, v, k, states, turned=True, reverse=False)
    grads, grad_first = launch.states(q, grad_out, grad_state.contiguous(), reverse=True)
    grad_k = launch.outputs(v, grad_out, q, grads, turned=True, reverse=True)
    grad_v = launch.outputs(k, q, grad_out, grads, turned=False, reverse=True)
    return grad_q, grad_k, grad_v, grad_first


@_chunkwise.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *rest: Tensor | None
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)


@_chunkwise_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *rest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, state = (x.new_empty(x.shape) for x in (q, k, v, state))
    return q, k, v, state


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    return *_chunkwise_backward(*ctx.saved_tensors, grad_out, grad_state), None, None


_chunkwise.register_autograd(_backward, setup_context=_save_inputs)
