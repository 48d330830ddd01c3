"""Chunkwise retention (Eq. 7) at speed, on any device: an autograd.Function of batched products.

With a chunk's tokens counted j = 0..C-1, the decay is folded into queries and keys once,

    q'_j = gamma^j q_j    k'_j = gamma^-j k_j    so that q'_i . k'_j = gamma^(i-j) q_i . k_j

and what is left of Eq. 7 has no decay mask, only factors of whole states:

    out = tril(Q' K'^T) V + Q' (gamma S)        S_next = gamma^(C-1) (gamma S + K'^T V).

gamma^-(C-1) must stay in range: `safe_chunk_size` shortens chunks where a head forgets too fast for
the size asked. A chunk of one token folds nothing, and so suits every decay.

The work goes through spans of some rows and some consecutive chunks, small enough on a CPU that
everything between reading q, k, v and writing the result stays in the cache. A span packs its
tiles, one for each row, head and chunk, as [G, C, .], and all its products are batched over G; the
recurrence over its chunks is one product with a matrix of decays. Only q, k, v and the state before
each chunk are kept for the backward pass, which takes the spans in reverse and recomputes the rest.

Chunks and spans depend on numbers, which compilers and exporters do not have: to them the form is
one operator, `retnet::chunkwise`, at the end of this file. A program that was exported and saved
needs `import retnet.ops` before it is loaded.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from retnet.ops.precision import matmul_dtype, without_autocast
from retnet.ops.reference import accumulation_dtype, segment_runs
from retnet.ops.tiles import Buffers, Span, Tiles, span_decays

# The largest gamma^-(C-1) folded into keys. Scaling costs range, not precision, and 2^40 leaves
# products of queries, keys and gradients a factor of 1e26 before fp32 and bf16 overflow. fp16 ends
# at 2^16, and at 2^-14 below.
LARGEST_FOLD, LARGEST_FOLD_FP16 = 2.0**40, 2.0**6

# Bytes of a span's largest buffer: of one row, and in all. On a CPU a few such buffers fill a
# core's cache; elsewhere fewer launches matter more. Only the limit for one row orders the sums, so
# that a row's bits do not depend on how many rows are beside it (except that torch computes a batch
# of a single product, of one row, head and chunk, in another order).
ROW_BYTES, SPAN_BYTES = 2**20, 2**21
DEVICE_ROW_BYTES, DEVICE_SPAN_BYTES = 2**25, 2**29


def retention_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    segment_ids: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Eq. 7, as `retnet.ops.retention_chunkwise`; unchecked, and no gradient of log_decay."""
    if log_decay.requires_grad:
        raise ValueError(
            "log_decay must not require a gradient on the 'torch' backend, which has none for it; "
            "detach it, or pass backend='reference'"
        )
    batch, _, heads, key_size = q.shape
    if state is None:
        state = q.new_zeros(batch, heads, key_size, v.shape[3], dtype=accumulation_dtype(v.dtype))
    if key_size == 1:
        # With a second entry of zeros: a product with a single row sums in another order, which on
        # some CPUs depends on where in memory its result lies, and so on the rows beside it.
        q, k, state = pad(q, (0, 1)), pad(k, (0, 1)), pad(state, (0, 0, 0, 1))
        out, state = retention_chunkwise(q, k, v, log_decay, state, segment_ids, chunk_size)
        return out, state[:, :, :1]
    runs = None if segment_ids is None else segment_runs(segment_ids, q)
    if torch.compiler.is_compiling():
        return _chunkwise_operator(q, k, v, state, log_decay, runs, chunk_size)
    return _ChunkwiseRetention.apply(  # type: ignore[no-untyped-call]
        q, k, v, state, *_decay_and_chunk(log_decay, chunk_size, v), runs
    )


def _decay_and_chunk(log_decay: Tensor, chunk_size: int, v: Tensor) -> tuple[Tensor, int]:
    """log_decay on the CPU, where its numbers can be read, and the tokens of a chunk."""
    decay = log_decay.cpu()
    return decay, safe_chunk_size(decay, min(chunk_size, max(1, v.shape[1])), matmul_dtype(v))


def safe_chunk_size(log_decay: Tensor, chunk_size: int, dtype: torch.dtype) -> int:
    """The first C of chunk_size, chunk_size / 2, ... whose gamma^-(C-1) is in range of dtype."""
    largest = math.log(LARGEST_FOLD_FP16 if dtype == torch.float16 else LARGEST_FOLD)
    fastest = -float(log_decay.min())
    while fastest * (chunk_size - 1) > largest:
        chunk_size //= 2
    return chunk_size


class _ChunkwiseRetention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor,
        decay: Tensor,
        chunk: int,
        runs: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        out, last_state, before = _forward(
            q, k, v, state, decay, chunk, runs, keep=any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(q, k, v, decay, runs, *before)
        ctx.chunk = chunk
        return out, last_state

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "retention's 'torch' backend has no second derivatives, which create_graph=True "
                "asks for; pass backend='reference'"
            )
        with without_autocast(grad_out.device.type):
            grads = _backward(
                *ctx.saved_tensors, grad_out=grad_out, grad_state=grad_state, chunk=ctx.chunk
            )
        return *grads, None, None, None


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    decay: Tensor,
    chunk: int,
    runs: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The outputs, the last state, and if they are to be kept, gamma S before each chunk."""
    out, last_state = v.new_empty(v.shape), state.new_empty(state.shape)
    kept: list[Tensor] = []
    buffers = Buffers(v)
    for rows, spans in _row_groups(v, decay, chunk):
        carried = state[rows]
        for span in spans:
            tiles = Tiles.pack(span, rows, q, k, v, runs, buffers)
            before, carried = tiles.states(carried)
            span.write(_outputs(tiles, before), out[rows])
            if keep:
                kept.append(before)
                buffers.release("before")
        last_state[rows] = carried
    return out, last_state, kept


def _states_before(
    k: Tensor, v: Tensor, state: Tensor, decay: Tensor, chunk: int, runs: Tensor | None
) -> list[Tensor]:
    """gamma S before each chunk alone, as `_forward` keeps it."""
    kept: list[Tensor] = []
    buffers = Buffers(v)
    for rows, spans in _row_groups(v, decay, chunk):
        carried = state[rows]
        for span in spans:
            tiles = Tiles.pack(span, rows, k[..., :0], k, v, runs, buffers)  # no queries
            before, carried = tiles.states(carried)
            kept.append(before)
            buffers.release("before")
    return kept


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    runs: Tensor | None,
    *before: Tensor,
    grad_out: Tensor,
    grad_state: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the first state, given gamma S `before` each chunk of each span."""
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_first_state = grad_state.new_empty(grad_state.shape)
    buffers, remaining = Buffers(v), list(before)
    for rows, spans in reversed(_row_groups(v, decay, chunk)):
        grad_carried = grad_state[rows]
        for span in reversed(spans):
            tiles = Tiles.pack(span, rows, q, k, v, runs, buffers)
            grad_tiles = span.pack(grad_out[rows], buffers, "grad_out")
            *grads, grad_carried = _span_backward(tiles, remaining.pop(), grad_tiles, grad_carried)
            factors = (span.to_query, span.to_key, None)
            for grad, full, factor in zip(grads, (grad_q, grad_k, grad_v), factors, strict=True):
                span.write(grad, full[rows], factor)
        grad_first_state[rows] = grad_carried
    return grad_q, grad_k, grad_v, grad_first_state


def _outputs(tiles: Tiles, before: Tensor) -> Tensor:
    """A span's outputs [G, C, V], given gamma S before each chunk."""
    out = tiles.buffers.product("out", tiles.scores(tiles.q, tiles.k), tiles.v)
    return out.baddbmm_(tiles.that_read(tiles.q), before)


def _span_backward(
    tiles: Tiles, before: Tensor, grad_out: Tensor, grad_after: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a span's tiles and of the state before it [rows, H, K, V]."""
    q, k, v, product = tiles.q, tiles.k, tiles.v, tiles.buffers.product
    grad_read = tiles.that_read(grad_out)
    grad_updates, grad_carried = tiles.states_backward(
        product("grad_before", q.mT, grad_read), grad_after
    )

    grad_v = product("grad_v", tiles.scores(q, k).mT, grad_out).baddbmm_(
        tiles.that_enter(k), grad_updates
    )
    grad_scores = tiles.scores(grad_out, v)
    grad_q = product("grad_q", grad_scores, k).baddbmm_(grad_read, before.mT)
    grad_k = product("grad_k", grad_scores.mT, q).baddbmm_(tiles.that_enter(v), grad_updates.mT)
    return grad_q, grad_k, grad_v, grad_carried


def _row_groups(v: Tensor, decay: Tensor, chunk: int) -> list[tuple[slice, list[Span]]]:
    """The rows and spans that v [B, T, H, V] is worked through in."""
    batch, tokens, heads, value_size = v.shape
    on_cpu = v.device.type == "cpu"
    row_bytes = ROW_BYTES if on_cpu else DEVICE_ROW_BYTES
    span_bytes = SPAN_BYTES if on_cpu else DEVICE_SPAN_BYTES
    chunk_bytes = heads * chunk * max(value_size, chunk) * matmul_dtype(v).itemsize
    num_chunks = max(1, min(row_bytes // chunk_bytes, tokens // chunk))
    num_rows = max(1, span_bytes // (num_chunks * chunk_bytes))
    spans = list(_spans(v, decay, chunk, num_chunks))
    return [(slice(row, row + num_rows), spans) for row in range(0, batch, num_rows)]


def _spans(v: Tensor, decay: Tensor, chunk: int, num_chunks: int) -> Iterator[Span]:
    """The tokens of v [B, T, H, V] in spans of num_chunks chunks, then the rest of each."""
    tokens = v.shape[1]
    start = 0
    for chunk_now, chunks_now in (
        (chunk, num_chunks),
        (chunk, tokens // chunk % num_chunks),
        (tokens % chunk, 1),
    ):
        if chunk_now == 0 or chunks_now == 0:
            continue
        decays = span_decays(v, decay, chunks_now, chunk_now)
        while start + chunks_now * chunk_now <= tokens:
            yield Span(start, chunks_now, chunk_now, *decays)
            start += chunks_now * chunk_now


@torch.library.custom_op("retnet::chunkwise", mutates_args=())
def _chunkwise_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    log_decay: Tensor,
    runs: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The form as compilers and exporters see it: chunk and spans are chosen inside."""
    with without_autocast(v.device.type):
        decay, chunk = _decay_and_chunk(log_decay, chunk_size, v)
        out, last_state, _ = _forward(q, k, v, state, decay, chunk, runs, keep=False)
    return out, last_state


@torch.library.custom_op("retnet::chunkwise_backward", mutates_args=())
def _chunkwise_backward_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    log_decay: Tensor,
    runs: Tensor | None,
    chunk_size: int,
    grad_out: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and state. A graph cannot hold what depends on the number of spans, so
    the states before them are computed again.
    """
    with without_autocast(v.device.type):
        decay, chunk = _decay_and_chunk(log_decay, chunk_size, v)
        before = _states_before(k, v, state, decay, chunk, runs)
        return _backward(
            q, k, v, decay, runs, *before, grad_out=grad_out, grad_state=grad_state, chunk=chunk
        )


@_chunkwise_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *rest: Tensor | int | None
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)


@_chunkwise_backward_operator.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *rest: Tensor | int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, state = (x.new_empty(x.shape) for x in (q, k, v, state))
    return q, k, v, state


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors)


def _operator_backward(ctx: Any, grad_out: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    grads = _chunkwise_backward_operator(*ctx.saved_tensors, ctx.chunk_size, grad_out, grad_state)
    return *grads, None, None, None


_chunkwise_operator.register_autograd(_operator_backward, setup_context=_save_inputs)
