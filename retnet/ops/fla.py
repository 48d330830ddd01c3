"""Chunkwise retention by flash-linear-attention (fla-core), to compare with."""

from torch import Tensor


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_ids: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Eq. 7, as `retnet.ops.retention_chunkwise`, without segments; chunk_size is not heeded."""
    from fla.ops.simple_gla import chunk_simple_gla

    if segment_ids is not None:
        raise ValueError("segment_ids must be None on the 'fla' backend; pass backend='auto'")
    decay = log_decay.float().to(q.device)
    out, last = chunk_simple_gla(
        q, k, v, g_gamma=decay, scale=1.0, initial_state=state, output_final_state=True
    )
    return out, last
