"""A token in each of some rows, by the kernels of `step`: for serving on GPUs.

Positions and counts are tensors on the device, so that a captured step can be repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from retnet.ops.triton.configs import FUSED
from retnet.ops.triton.step import deferred_kernel, flush_kernel, step_kernel

Norm = Literal["none", "layernorm", "rmsnorm"]
# Fewer blocks than this leave a GPU's processors idle: then heads are divided, and their norm is
# left to the caller.
FEW_BLOCKS = 128


@dataclass(frozen=True)
class Finish:
    """What follows retention in a head: a norm without weights, and a gate [B, H, V]."""

    norm: Norm
    gate: Tensor
    eps: float


def step_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log2_decay: Tensor,
    states: Tensor,
    rows: Tensor,
    finish: Finish | None = None,
) -> Tensor:
    """Eq. 6 in some rows of states, which are changed.

    Args:
        q, k: [B, H, K]; v: [B, H, V]; all contiguous.
        log2_decay: [H] fp32, on the device.
        states: [rows, H, K, V] fp32.
        rows: [B] int64, all different; below 0 for places that are to be left out.
        finish: norm and gate, computed too; None for neither.

    Returns:
        q S [B, H, V]: fp32, or after norm and gate in the gate's dtype.
    """
    batch, heads, key_size = q.shape
    value_size = v.shape[2]
    out = _room(v, finish)
    sizes = _sizes(key_size, value_size, batch * heads, "none" if finish is None else finish.norm)
    step_kernel[(triton.cdiv(value_size, sizes["BLOCK_N"]), batch * heads)](
        *(q, k, v, v if finish is None else finish.gate, rows, log2_decay, states, out),
        *(heads, 0.0 if finish is None else finish.eps),
        **sizes,
        num_warps=_num_warps(sizes["BLOCK_N"]),
        **FUSED,
    )
    return out


@dataclass(frozen=True)
class DeferredStates:
    """States that are read, and not written, for up to `ring` tokens.

    states: [rows, H, K, V] fp32 or fp16; keys: [rows, H, ring, K] and values [rows, H, ring, V], of
    the tokens since; counts: [rows] int32, how many these are, which other layers may share.
    """

    states: Tensor
    keys: Tensor
    values: Tensor
    counts: Tensor

    @classmethod
    def of(
        cls, states: Tensor, ring: int, dtype: torch.dtype, counts: Tensor | None = None
    ) -> "DeferredStates":
        """States [rows, H, K, V] after which nothing was read. ring: a power of two up to 32;
        dtype: of values, keys are fp32.
        """
        if ring not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"ring must be a power of two up to 32, got {ring}")
        num_rows, heads, key_size, value_size = states.shape
        if counts is None:
            counts = torch.zeros(num_rows, dtype=torch.int32, device=states.device)
        return cls(
            states=states,
            keys=states.new_zeros(num_rows, heads, ring, key_size, dtype=torch.float32),
            values=states.new_zeros(num_rows, heads, ring, value_size, dtype=dtype),
            counts=counts,
        )

    def step_(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log2_decay: Tensor,
        rows: Tensor,
        finish: Finish | None = None,
    ) -> Tensor:
        """As the function `step_`. A row's ring must have room; `count_` the token afterwards."""
        batch, heads, key_size = q.shape
        value_size, ring = v.shape[2], self.keys.shape[2]
        out = _room(v, finish)
        sizes = _sizes(
            key_size, value_size, batch * heads, "none" if finish is None else finish.norm
        )
        deferred_kernel[(triton.cdiv(value_size, sizes["BLOCK_N"]), batch * heads)](
            *(q, k, v, v if finish is None else finish.gate, rows, self.counts, log2_decay),
            *(self.states, self.keys, self.values, out),
            *(heads, 0.0 if finish is None else finish.eps),
            **sizes,
            RING=ring,
            num_warps=_num_warps(sizes["BLOCK_N"]),
            **FUSED,
        )
        return out

    def count_(self, rows: Tensor, change: int) -> None:
        """So many tokens more in rows [B], but for those below 0; fewer, as after a draft that was
        refused, down to what was read since `flush_`.
        """
        added = torch.where(rows >= 0, change, 0).to(self.counts.dtype)
        self.counts.index_add_(0, rows.clamp(min=0), added)

    def flush_(self, log2_decay: Tensor, rows: Tensor) -> None:
        """Take the rings of rows [B] into their states; `empty_` them afterwards."""
        _, heads, ring, key_size = self.keys.shape
        value_size = self.values.shape[3]
        sizes = _flush_sizes(key_size, value_size)
        blocks = (
            triton.cdiv(key_size, sizes["BLOCK_P"]),
            triton.cdiv(value_size, sizes["BLOCK_N"]),
        )
        flush_kernel[(*blocks, len(rows) * heads)](
            *(rows, self.counts, log2_decay, self.states, self.keys, self.values, heads),
            **sizes,
            RING=ring,
            num_warps=4,
            **FUSED,
        )

    def empty_(self, rows: Tensor) -> None:
        """Count from none again in rows [B]."""
        self.counts.index_fill_(0, rows, 0)


def launches(key_size: int, value_size: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """The kernels of heads of a size, their constants and warps: of many rows, ring 32."""
    sizes = _sizes(key_size, value_size, FEW_BLOCKS, "layernorm")
    yield "step", sizes, _num_warps(sizes["BLOCK_N"])
    yield "deferred", {**sizes, "RING": 32}, _num_warps(sizes["BLOCK_N"])
    yield "flush", {**_flush_sizes(key_size, value_size), "RING": 32}, 4


def _room(v: Tensor, finish: Finish | None) -> Tensor:
    return torch.empty_like(v, dtype=torch.float32 if finish is None else finish.gate.dtype)


def _sizes(key_size: int, value_size: int, num_heads: int, norm: Norm) -> dict[str, Any]:
    """Constants of a step of so many heads. A block has all values where a norm must see them; else
    fewer where blocks would be few. Its tiles have 16 numbers for each thread.
    """
    block_n = _power_of_2(value_size)
    while norm == "none" and block_n > 32 and num_heads * value_size < FEW_BLOCKS * block_n:
        block_n //= 2
    tile = 16 * 32 * _num_warps(block_n)
    block_p = max(1, min(_power_of_2(key_size), tile // block_n))
    return {
        "P": key_size,
        "N": value_size,
        "BLOCK_P": block_p,
        "BLOCK_N": block_n,
        "NORM": norm,
    }


def _flush_sizes(key_size: int, value_size: int) -> dict[str, Any]:
    block_p, block_n = (min(64, _power_of_2(size)) for size in (key_size, value_size))
    return {"P": key_size, "N": value_size, "BLOCK_P": block_p, "BLOCK_N": block_n}


def _num_warps(block_n: int) -> int:
    return 8 if block_n >= 256 else 4


def _power_of_2(size: int) -> int:
    return int(triton.next_power_of_2(size))
