"""What tokens get from a state and from the tokens of their super-chunk.

One kernel is the outputs and the three gradients, with M the state that a token reads:

    o_t  = gamma^(t-start+1) q_t S        + sum_{s <= t} gamma^(t-s) (q_t . k_s)  v_s
    dq_t = gamma^(t-start+1) dO_t S^T     + sum_{s <= t} gamma^(t-s) (dO_t . v_s) k_s
    dk_t = gamma^(end-1-t)   v_t dS^T     + sum_{s >= t} gamma^(s-t) (v_t . dO_s) q_s
    dv_t = gamma^(end-1-t)   k_t dS       + sum_{s >= t} gamma^(s-t) (k_t . q_s)  dO_s,

that is, a_t M and sums of (a_t . b_s) c_s over the past or, in REVERSE, the future.
"""

import triton
import triton.language as tl

from retnet.ops.triton.common import load_tile, load_turned, power, product


@triton.jit
def _scores(
    a,
    b,
    t,
    s,
    a_token,
    b_token,
    end,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """a_t . b_s, [t, s]."""
    scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    for p0 in range(0, P, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        a_tile = load_tile(a, t, a_token, end, p, P)
        b_tile = load_turned(b, s, b_token, end, p, P)
        scores = product(a_tile, b_tile, scores, UPCAST)
    return scores


@triton.jit
def outputs_kernel(
    a,  # [B, T, H, P]
    b,  # [B, T, H, P]
    c,  # [B, T, H, N]
    runs,  # [B, T] int32, the number of each token's segment
    log2_decay,  # [H] fp32
    states,  # [B, H, super-chunks, P, N], or [..., N, P] where TURNED
    out,  # [B, T, H, N], contiguous
    a_row,
    a_token,
    a_head,
    b_row,
    b_token,
    b_head,
    c_row,
    c_token,
    c_head,
    T,
    H,
    P: tl.constexpr,
    N: tl.constexpr,
    SUPER: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TURNED: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_RUNS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """A chunk of tokens of one row and head, and a block of what each gets."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t0 = tl.program_id(1) * CHUNK
    row_head = tl.program_id(2).to(tl.int64)
    row, head = row_head // H, row_head % H
    lg = tl.load(log2_decay + head)
    a += row * a_row + head * a_head
    b += row * b_row + head * b_head
    c += row * c_row + head * c_head
    runs += row * T
    t = t0 + tl.arange(0, CHUNK)
    index = t0 // SUPER
    start = index * SUPER
    end = tl.minimum(start + SUPER, T)

    states += (row_head * tl.cdiv(T, SUPER) + index) * P * N
    acc = tl.zeros([CHUNK, BLOCK_N], dtype=tl.float32)
    for p0 in range(0, P, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        a_tile = load_tile(a, t, a_token, end, p, P)
        if TURNED:  # noqa: SIM108, compiled whichever branch it is
            state = load_turned(states, n, P, N, p, P)
        else:
            state = load_tile(states, p, N, P, n, N)
        acc = product(a_tile, state.to(a.dtype.element_ty), acc, UPCAST)
    reads = power(lg, end - 1 - t if REVERSE else t - start + 1)
    if HAS_RUNS:
        run = tl.load(runs + t, mask=t < end, other=-1)
        read = tl.load(runs + (end - 1 if REVERSE else tl.maximum(start - 1, 0)))
        reads = tl.where(run == read, reads, 0.0)
    acc *= reads[:, None]

    # Between whole chunks the decay is a product of two factors, each at most 1: to the edge of
    # this chunk, and from there.
    edge = t0 + CHUNK if REVERSE else t0
    to_edge = power(lg, edge - t if REVERSE else t - edge)
    for s0 in range(edge if REVERSE else start, end if REVERSE else edge, CHUNK):
        s = s0 + tl.arange(0, CHUNK)
        scores = _scores(a, b, t, s, a_token, b_token, end, P, CHUNK, BLOCK_P, UPCAST)
        scores *= to_edge[:, None] * power(lg, s - edge if REVERSE else edge - s)[None, :]
        if HAS_RUNS:
            other = tl.load(runs + s, mask=s < end, other=-1)
            scores = tl.where(run[:, None] == other[None, :], scores, 0.0)
        c_tile = load_tile(c, s, c_token, end, n, N)
        acc = product(scores.to(c.dtype.element_ty), c_tile, acc, UPCAST)

    scores = _scores(a, b, t, t, a_token, b_token, end, P, CHUNK, BLOCK_P, UPCAST)
    ahead = t[None, :] - t[:, None] if REVERSE else t[:, None] - t[None, :]
    sees = ahead >= 0
    if HAS_RUNS:
        sees = sees & (run[:, None] == run[None, :])
    scores = tl.where(sees, scores * power(lg, ahead), 0.0)
    c_tile = load_tile(c, t, c_token, end, n, N)
    acc = product(scores.to(c.dtype.element_ty), c_tile, acc, UPCAST)

    inside = (t < end)[:, None] & (n < N)[None, :]
    to = out + ((row * T + t)[:, None] * H + head) * N + n[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=inside)
