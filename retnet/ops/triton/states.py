"""The states between super-chunks, and their gradients.

With a super-chunk's tokens t = start..end-1, forward through k and v

    S_after = gamma^(end-start) S_before + sum_t gamma^(end-1-t) k_t v_t^T,

and backward through q and the gradient of the outputs

    dS_before = gamma^(end-start) dS_after + sum_t gamma^(t-start+1) q_t dO_t^T:

one kernel, REVERSE or not. A boundary of segments cuts each factor off where it lies between.
"""

import triton
import triton.language as tl

from retnet.ops.triton.common import load_tile, load_turned, power, product


@triton.jit
def states_kernel(
    a,  # [B, T, H, P]: k, or q
    b,  # [B, T, H, N]: v, or dO
    runs,  # [B, T] int32, the number of each token's segment
    log2_decay,  # [H] fp32
    first,  # [B, H, P, N] fp32: the state before everything, or the gradient of that after it
    states,  # [B, H, super-chunks, P, N]: S_before, or dS_after, of each
    last,  # [B, H, P, N] fp32: what is left at the other end
    a_row,
    a_token,
    a_head,
    b_row,
    b_token,
    b_head,
    T,
    H,
    P: tl.constexpr,
    N: tl.constexpr,
    SUPER: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A block of the state of one row and head, through all super-chunks."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_head = tl.program_id(2).to(tl.int64)
    row, head = row_head // H, row_head % H
    lg = tl.load(log2_decay + head)
    a += row * a_row + head * a_head
    b += row * b_row + head * b_head
    runs += row * T
    inside = (p < P)[:, None] & (n < N)[None, :]
    place = p[:, None] * N + n[None, :]
    num_super = tl.cdiv(T, SUPER)
    state = tl.load(first + row_head * P * N + place, mask=inside, other=0.0)
    for step in range(num_super):
        index = num_super - 1 - step if REVERSE else step
        start = index * SUPER
        end = tl.minimum(start + SUPER, T)
        to = states + (row_head * num_super + index) * P * N + place
        tl.store(to, state.to(states.dtype.element_ty), mask=inside)
        carried = power(lg, end - start)
        if HAS_RUNS:
            before = tl.load(runs + tl.maximum(start - 1, 0))
            after = tl.load(runs + end - 1)
            carried = tl.where(before == after, carried, 0.0)
        state *= carried
        for t0 in range(start, end, CHUNK):
            t = t0 + tl.arange(0, CHUNK)
            enters = t < end
            if HAS_RUNS:
                run = tl.load(runs + t, mask=enters, other=-1)
                enters = enters & (run == (before if REVERSE else after))
            weight = power(lg, t - start + 1 if REVERSE else end - 1 - t)
            weight = tl.where(enters, weight, 0.0)
            a_tile = load_turned(a, t, a_token, end, p, P)
            b_tile = load_tile(b, t, b_token, end, n, N)
            weighted = (a_tile.to(tl.float32) * weight[None, :]).to(a.dtype.element_ty)
            state = product(weighted, b_tile, state, UPCAST)
    tl.store(last + row_head * P * N + place, state, mask=inside)
