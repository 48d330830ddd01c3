"""Retention in its three forms, and the algebra of its state.

The op is the equation and nothing else: no scale, positions, padding or normaliser. Each form takes
a state and hands one on, and any form may continue any other, at any cut. Per head, with
gamma = exp(log_decay),

    o_n = sum_{m <= n} gamma^(n-m) (q_n . k_m) v_m + gamma^(n+1) q_n S

for n, m = 0..T-1, with S the state before.
"""

import torch
from torch import Tensor

from retnet.ops.backends import Form, available_backends, choose_backend, retention_of
from retnet.ops.precision import without_autocast
from retnet.ops.reference import accumulation_dtype, power

__all__ = [
    "available_backends",
    "choose_backend",
    "combine_states",
    "retention_chunkwise",
    "retention_parallel",
    "retention_recurrent",
]


def retention_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Retention as one masked product, O(T^2) in time and memory (Eq. 5).

    Args:
        q: [B, T, H, K], any float dtype, T >= 0.
        k: [B, T, H, K], same dtype.
        v: [B, T, H, V], same dtype.
        log_decay: [H], log(gamma) <= 0, fp32 or fp64; may stay on the CPU.
        state: [B, H, K, V], what the tokens before left behind, or None for zeros.
        segment_ids: [B, T] integers. Tokens see each other only within a run of equal ids; the
            state that comes in belongs to the first run, the one handed out to the last.
        backend: "auto" or one of `available_backends("parallel")`.

    Returns:
        The outputs [B, T, H, V] in v's dtype, and the state after the last token [B, H, K, V], fp32
        (fp64 where the inputs are fp64).

    Raises:
        ValueError: where a shape, dtype, device, sign or backend is not as above.
    """
    _check(q, k, v, log_decay, state, segment_ids)
    return _run("parallel", backend, q, k, v, log_decay, state, segment_ids)


def retention_recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Retention token by token, in constant memory (Eq. 6); else as `retention_parallel`."""
    _check(q, k, v, log_decay, state, segment_ids)
    return _run("recurrent", backend, q, k, v, log_decay, state, segment_ids)


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    *,
    segment_ids: Tensor | None = None,
    chunk_size: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Retention chunk by chunk, O(T) in time with the speed of matrix products (Eq. 7 as in v4).

    As `retention_parallel` otherwise. chunk_size, the tokens of a chunk, changes the speed and not
    the result; T need not be a multiple of it. Heads that forget fast are given shorter chunks, so
    that gamma^-chunk stays in range. The "torch" backend differentiates by q, k, v and state, not
    by log_decay.
    """
    _check(q, k, v, log_decay, state, segment_ids)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive integer, got {chunk_size!r}")
    return _run("chunkwise", backend, q, k, v, log_decay, state, segment_ids, chunk_size)


def combine_states(
    first: Tensor, second: Tensor, log_decay: Tensor, num_tokens_second: int | Tensor
) -> Tensor:
    """The state after two stretches of tokens, from the state that each leaves on its own (Eq. 6,
    summed).

    Args:
        first: [B, H, K, V], the first one's, from zeros.
        second: [B, H, K, V], the second one's, from zeros, its keys rotated at their own positions.
        log_decay: [H], log(gamma) <= 0.
        num_tokens_second: the length of the second stretch, one number or [B].

    Returns:
        gamma^num_tokens_second first + second, [B, H, K, V] in second's dtype.

    Raises:
        ValueError: where the states differ in shape, or the others do not fit them.
    """
    if first.dim() != 4 or first.shape != second.shape:
        raise ValueError(
            f"first and second must be [B, H, K, V] of one shape, "
            f"got {_shape(first)} and {_shape(second)}"
        )
    _check_log_decay(log_decay, heads=first.shape[1], device=first.device)
    tokens = torch.as_tensor(num_tokens_second, device=log_decay.device).reshape(-1)
    if len(tokens) not in (1, len(first)) or tokens.dtype.is_floating_point or (tokens < 0).any():
        raise ValueError(
            f"num_tokens_second must be a count >= 0, or one for each of the {len(first)} rows, "
            f"got {num_tokens_second}"
        )
    carried = power(log_decay, tokens).mT[..., None, None].to(second.device, second.dtype)
    return carried * first + second


def _run(
    form: Form, backend: str, q: Tensor, *arguments: Tensor | int | None
) -> tuple[Tensor, Tensor]:
    retention = retention_of(form, choose_backend(form, backend, q.device, q.dtype))
    with without_autocast(q.device.type):
        return retention(q, *arguments)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_ids: Tensor | None,
) -> None:
    if q.dim() != 4 or k.shape != q.shape:
        raise ValueError(
            f"q and k must be [B, T, H, K] of one shape, got {_shape(q)} and {_shape(k)}"
        )
    if v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v must be [B, T, H, V] with q's B, T, H = {_shape(q[..., 0])}, got {_shape(v)}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(
            f"q, k, v must share one float dtype, got {q.dtype}, {k.dtype}, {v.dtype}; cast them"
        )
    for name, x in (("k", k), ("v", v), ("state", state), ("segment_ids", segment_ids)):
        if x is not None and x.device != q.device:
            raise ValueError(
                f"{name} must be on q's device {q.device}, got {x.device}; move it there"
            )
    _check_log_decay(log_decay, heads=q.shape[2], device=q.device)
    if state is not None:
        expected = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
        if state.shape != expected:
            raise ValueError(f"state must be [B, H, K, V] = {list(expected)}, got {_shape(state)}")
        if state.dtype != accumulation_dtype(v.dtype):
            raise ValueError(
                f"state must be {accumulation_dtype(v.dtype)} for {v.dtype} inputs, "
                f"got {state.dtype}"
            )
    if segment_ids is not None and (
        segment_ids.shape != q.shape[:2] or segment_ids.dtype.is_floating_point
    ):
        raise ValueError(
            f"segment_ids must be integers [B, T] = {list(q.shape[:2])}, "
            f"got {segment_ids.dtype} {_shape(segment_ids)}"
        )


def _check_log_decay(log_decay: Tensor, *, heads: int, device: torch.device) -> None:
    if log_decay.shape != (heads,):
        raise ValueError(f"log_decay must be [H] = [{heads}], got {_shape(log_decay)}")
    if log_decay.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"log_decay must be fp32 or fp64, got {log_decay.dtype}, where slow heads never forget"
        )
    if log_decay.device.type not in ("cpu", device.type):
        raise ValueError(
            f"log_decay must be on the device {device} or the CPU, got {log_decay.device}"
        )
    if torch.compiler.is_compiling():
        return  # No numbers yet.
    low, high = (float(x) for x in log_decay.detach().aminmax())
    if not high <= 0:
        raise ValueError(f"log_decay must be <= 0, got max {high:.3g}; pass log(gamma), not gamma")
    if not low > -float("inf"):
        raise ValueError(
            f"log_decay must be finite, got min {low:.3g}; the smallest gamma must be above 0"
        )


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
