"""A token in each of some rows: kernels that read, and write, a state of one row and head.

`step_kernel` is Eq. 6, S <- gamma S + k v^T and o = q S. `deferred_kernel` leaves S as it was and
keeps the keys and values of the last n tokens in a ring beside it,

    o = gamma^(n+1) q S + sum_{j<n} gamma^(n-j) (q . k_j) v_j + (q . k) v,

which is the same number from half the bytes (arXiv:2605.19049 does so for linear attention);
`flush_kernel` takes a ring into S. Either ends, where a block is a whole head, in the head's norm
and the gate.
"""

import triton
import triton.language as tl

from retnet.ops.triton.common import load_tile, power


@triton.jit
def normed_and_gated(
    x,
    gate,
    n,
    N: tl.constexpr,
    eps,
    NORM: tl.constexpr,
):
    """norm(x) * swish(gate) of x [..., n] in fp32; NORM: "layernorm" or "rmsnorm"."""
    inside = n < N
    if NORM == "layernorm":
        x = tl.where(inside, x - tl.sum(tl.where(inside, x, 0.0), axis=0) / N, 0.0)
    variance = tl.sum(tl.where(inside, x * x, 0.0), axis=0) / N
    return x * tl.rsqrt(variance + eps) * gate * tl.sigmoid(gate)


@triton.jit
def _finish(
    result,
    gate,
    out,
    place,
    n,
    N: tl.constexpr,
    eps,
    NORM: tl.constexpr,
):
    """Write a block of a head's result, after its norm and gate where they are asked for."""
    inside = n < N
    if NORM != "none":
        gates = tl.load(gate + place * N + n, mask=inside, other=0.0).to(tl.float32)
        result = normed_and_gated(result, gates, n, N, eps, NORM)
    tl.store(out + place * N + n, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def step_kernel(
    q,  # [B, H, P]
    k,  # [B, H, P]
    v,  # [B, H, N]
    gate,  # [B, H, N], read where there is a norm
    rows,  # [B] int64, of the states; below 0 for a place where there is none
    log2_decay,  # [H] fp32
    states,  # [rows, H, P, N] fp32, changed
    out,  # [B, H, N]
    H,
    eps,
    P: tl.constexpr,
    N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NORM: tl.constexpr,
):
    """A block of the values of one row and head."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.program_id(1).to(tl.int64)
    head = place % H
    gamma = tl.exp2(tl.load(log2_decay + head))
    row = tl.load(rows + place // H)
    is_there = row >= 0
    states += (tl.maximum(row, 0) * H + head) * P * N
    value = tl.load(v + place * N + n, mask=n < N, other=0.0).to(tl.float32)
    result = tl.zeros([BLOCK_N], dtype=tl.float32)
    for p0 in range(0, tl.where(is_there, P, 0), BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        query = tl.load(q + place * P + p, mask=p < P, other=0.0).to(tl.float32)
        key = tl.load(k + place * P + p, mask=p < P, other=0.0).to(tl.float32)
        state = gamma * load_tile(states, p, N, P, n, N) + key[:, None] * value[None, :]
        inside = (p < P)[:, None] & (n < N)[None, :]
        tl.store(states + p[:, None] * N + n[None, :], state, mask=inside)
        result += tl.sum(query[:, None] * state, axis=0)
    _finish(result, gate, out, place, n, N, eps, NORM)


@triton.jit
def deferred_kernel(
    q,  # [B, H, P]
    k,  # [B, H, P]
    v,  # [B, H, N]
    gate,  # [B, H, N], read where there is a norm
    rows,  # [B] int64, of states, rings and counts; below 0 for a place where there is none
    counts,  # [rows] int32, tokens in each ring; changed by the caller afterwards
    log2_decay,  # [H] fp32
    states,  # [rows, H, P, N]
    keys,  # [rows, H, RING, P], changed
    values,  # [rows, H, RING, N], changed
    out,  # [B, H, N]
    H,
    eps,
    P: tl.constexpr,
    N: tl.constexpr,
    RING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NORM: tl.constexpr,
):
    """A block of the values of one row and head."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.program_id(1).to(tl.int64)
    head = place % H
    row = tl.load(rows + place // H)
    is_there = row >= 0
    row = tl.maximum(row, 0)
    count = tl.load(counts + row)
    lg = tl.load(log2_decay + head)
    states += (row * H + head) * P * N
    keys += (row * H + head) * RING * P
    values += (row * H + head) * RING * N
    value = tl.load(v + place * N + n, mask=n < N, other=0.0)
    tl.store(
        values + count * N + n, value.to(values.dtype.element_ty), mask=n < tl.where(is_there, N, 0)
    )

    j = tl.arange(0, RING)
    result = tl.zeros([BLOCK_N], dtype=tl.float32)
    scores = tl.zeros([RING], dtype=tl.float32)
    own = 0.0
    for p0 in range(0, tl.where(is_there, P, 0), BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        query = tl.load(q + place * P + p, mask=p < P, other=0.0).to(tl.float32)
        key = tl.load(k + place * P + p, mask=p < P, other=0.0)
        if tl.program_id(0) == 0:  # the others read no key that this step writes
            tl.store(keys + count * P + p, key.to(keys.dtype.element_ty), mask=p < P)
        own += tl.sum(query * key.to(tl.float32), axis=0)
        past = load_tile(keys, j, P, count, p, P).to(tl.float32)
        scores += tl.sum(past * query[None, :], axis=1)
        state = load_tile(states, p, N, P, n, N).to(tl.float32)
        result += tl.sum(query[:, None] * state, axis=0)
    result *= power(lg, count + 1)
    scores *= tl.where(j < count, power(lg, count - j), 0.0)
    past_values = load_tile(values, j, N, count, n, N).to(tl.float32)
    result += tl.sum(scores[:, None] * past_values, axis=0) + own * value.to(tl.float32)
    _finish(result, gate, out, place, n, N, eps, NORM)


@triton.jit
def flush_kernel(
    rows,  # [B] int64, of states, rings and counts; below 0 for a place where there is none
    counts,  # [rows] int32, tokens in each ring
    log2_decay,  # [H] fp32
    states,  # [rows, H, P, N], changed
    keys,  # [rows, H, RING, P]
    values,  # [rows, H, RING, N]
    H,
    P: tl.constexpr,
    N: tl.constexpr,
    RING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A block of the state of one row and head, where there is anything in its ring."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.program_id(2).to(tl.int64)
    head = place % H
    row = tl.load(rows + place // H)
    count = tl.load(counts + tl.maximum(row, 0))
    if (row >= 0) & (count > 0):
        lg = tl.load(log2_decay + head)
        states += (row * H + head) * P * N
        keys += (row * H + head) * RING * P
        values += (row * H + head) * RING * N
        state = load_tile(states, p, N, P, n, N).to(tl.float32) * power(lg, count)
        for j in range(count):
            key = tl.load(keys + j * P + p, mask=p < P, other=0.0).to(tl.float32)
            value = tl.load(values + j * N + n, mask=n < N, other=0.0).to(tl.float32)
            state += power(lg, count - 1 - j) * key[:, None] * value[None, :]
        inside = (p < P)[:, None] & (n < N)[None, :]
        to = states + p[:, None] * N + n[None, :]
        tl.store(to, state.to(states.dtype.element_ty), mask=inside)
