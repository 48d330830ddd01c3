"""The three forms of retention, each straight from its equation, in plain torch.

Equations are those of arXiv 2307.08621 v4. These are the definitions that every fast path is tested
against: they favour being read over speed, and compute in the accumulation dtype throughout.
Letters are the paper's: D is the decay mask, S and R are states, zeta and xi the decays from a
token to its chunk's end and from its chunk's start to it. Arguments and shapes are those of
`retnet.ops`; nothing is checked here.

Segments multiply one factor into each sum: token n sees token m only if no boundary lies between
them. `run` counts the boundaries up to each token, so that is `run_n == run_m`; the state that
comes in belongs to run 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the state and of every sum: fp64 for fp64 inputs, fp32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def segment_runs(segment_ids: Tensor | None, like: Tensor) -> Tensor:
    """The number of segment boundaries up to each token of `like` [B, T, ...]: [B, T] int64."""
    if segment_ids is None:
        return torch.zeros(like.shape[:2], dtype=torch.int64, device=like.device)
    return pad(segment_ids.diff(dim=1).ne(0), (1, 0))[:, : like.shape[1]].cumsum(1)


def power(log_decay: Tensor, exponent: Tensor | int) -> Tensor:
    """gamma ** exponent, [H, *exponent.shape], in fp64."""
    if isinstance(exponent, Tensor):
        exponent = exponent.to(log_decay.device)
        log_decay = log_decay.reshape(-1, *[1] * exponent.dim())
    return torch.exp(log_decay.double() * exponent)


def retention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Eq. 5: (Q K^T . D) V, plus what the incoming state adds to it. O(T^2) time and memory."""
    Q, K, V, S, log_decay = _prepare(q, k, v, state, log_decay)
    run = segment_runs(segment_ids, q)
    T = Q.shape[2]
    n = torch.arange(T, device=q.device)
    D = power(log_decay, (n[:, None] - n).clamp(min=0)).tril().to(Q.dtype)
    visible = run[:, None, :, None] == run[:, None, None, :]
    out = (Q @ K.mT * D * visible) @ V

    in_first, in_last = run == 0, run == run[:, -1:]
    out = out + Q @ S * (power(log_decay, n + 1).to(Q.dtype) * in_first[:, None])[..., None]
    to_end = power(log_decay, T - 1 - n).to(Q.dtype) * in_last[:, None]
    one_segment = in_first.all(dim=1)[:, None, None, None]
    S = (
        S * power(log_decay, T).to(Q.dtype)[:, None, None] * one_segment
        + (K * to_end[..., None]).mT @ V
    )
    return out.transpose(1, 2).to(v.dtype), S


def retention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Eq. 6: S_n = gamma S_{n-1} + K_n^T V_n and o_n = Q_n S_n. O(T) time, one state of memory."""
    Q, K, V, S, log_decay = _prepare(q, k, v, state, log_decay)
    gamma = power(log_decay, 1).to(Q.dtype)[:, None, None]
    starts = None if segment_ids is None else pad(segment_ids.diff(dim=1), (1, 0)).ne(0)
    outs = [V[:, :, :0]]
    for n in range(Q.shape[2]):
        if starts is not None:
            S = S.masked_fill(starts[:, n, None, None, None], 0)
        S = torch.addcmul(gamma * S, K[:, :, n, :, None], V[:, :, n, None, :])
        outs.append(Q[:, :, n, None, :] @ S)
    return torch.cat(outs, dim=2).transpose(1, 2).to(v.dtype), S


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_ids: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Eq. 7, chunk by chunk. O(T) time, one chunk of memory.

    out_i = (Q_i K_i^T . D) V_i + (Q_i R_{i-1}) . xi and R_i = K_i^T (V_i . zeta) + gamma^B R_{i-1}
    """
    Q, K, V, R, log_decay = _prepare(q, k, v, state, log_decay)
    run = segment_runs(segment_ids, q)
    run_before = run.new_zeros(run.shape[0], 1)
    outs = [V[:, :, :0]]
    for start in range(0, Q.shape[2], chunk_size):
        Q_i, K_i, V_i = (x[:, :, start : start + chunk_size] for x in (Q, K, V))
        run_i = run[:, start : start + chunk_size]
        B = Q_i.shape[2]
        j = torch.arange(B, device=q.device)
        D = power(log_decay, (j[:, None] - j).clamp(min=0)).tril().to(Q.dtype)
        D = D * (run_i[:, None, :, None] == run_i[:, None, None, :])
        xi = power(log_decay, j + 1).to(Q.dtype) * (run_i == run_before)[:, None]
        zeta = power(log_decay, B - 1 - j).to(Q.dtype) * (run_i == run_i[:, -1:])[:, None]
        across = power(log_decay, B).to(Q.dtype) * (run_i[:, -1:] == run_before)

        outs.append((Q_i @ K_i.mT * D) @ V_i + Q_i @ R * xi[..., None])
        R = K_i.mT @ (V_i * zeta[..., None]) + across[..., None, None] * R
        run_before = run_i[:, -1:]
    return torch.cat(outs, dim=2).transpose(1, 2).to(v.dtype), R


def _prepare(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, log_decay: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Q, K, V [B, H, T, .] and the state in the accumulation dtype; log_decay on their device."""
    dtype = accumulation_dtype(v.dtype)
    Q, K, V = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    if state is None:
        state = K.new_zeros(*K.shape[:2], K.shape[3], V.shape[3])
    return Q, K, V, state.to(dtype), log_decay.to(q.device)
