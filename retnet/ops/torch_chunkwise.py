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
each span are kept for the backward pass, which takes the spans in reverse and recomputes the rest.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retnet.ops.precision import matmul_dtype, without_autocast
from retnet.ops.reference import accumulation_dtype, power, segment_runs

# The largest gamma^-(C-1) folded into keys. Scaling costs range, not precision, and 2^40 leaves
# products of queries, keys and gradients a factor of 1e26 before fp32 and bf16 overflow. fp16 ends
# at 2^16, and at 2^-14 below.
LARGEST_FOLD, LARGEST_FOLD_FP16 = 2.0**40, 2.0**6

# Numbers in a span's largest buffer: of one row, and in all. On a CPU a few such buffers fill a
# core's cache; elsewhere fewer launches matter more. Only the limit for one row orders the sums, so
# that a row's bits do not depend on how many rows are beside it (except that torch computes a batch
# of a single product, of one row, head and chunk, in another order).
ROW_NUMBERS, SPAN_NUMBERS = 2**18, 2**19
DEVICE_ROW_NUMBERS, DEVICE_SPAN_NUMBERS = 2**24, 2**28


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
    batch, tokens, heads, key_size = q.shape
    if state is None:
        state = q.new_zeros(batch, heads, key_size, v.shape[3], dtype=accumulation_dtype(v.dtype))
    runs = None if segment_ids is None else segment_runs(segment_ids, q)
    decay = log_decay.cpu()
    chunk = safe_chunk_size(decay, min(chunk_size, max(1, tokens)), matmul_dtype(v))
    return _ChunkwiseRetention.apply(  # type: ignore[no-untyped-call]
        q, k, v, state, decay, runs, chunk
    )


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
        runs: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        out, last_state = v.new_empty(v.shape), torch.empty_like(state)
        before: list[Tensor] = []
        buffers = _Buffers(v)
        for rows, spans in _row_groups(v, decay, chunk):
            carried = state[rows]
            for span in spans:
                before.append(carried)
                tiles = _Tiles.pack(span, rows, q, k, v, runs, buffers)
                span_out, carried = _span_forward(tiles, carried)
                span.write(span_out, out[rows])
            last_state[rows] = carried
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
    """Gradients of q, k, v and the first state, given the state `before` each span."""
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_first_state = torch.empty_like(grad_state)
    buffers, remaining = _Buffers(v), list(before)
    for rows, spans in reversed(_row_groups(v, decay, chunk)):
        grad_carried = grad_state[rows]
        for span in reversed(spans):
            tiles = _Tiles.pack(span, rows, q, k, v, runs, buffers)
            grad_tiles = span.pack(grad_out[rows], buffers, "grad_out")
            *grads, grad_carried = _span_backward(tiles, remaining.pop(), grad_tiles, grad_carried)
            for grad, full in zip(grads, (grad_q, grad_k, grad_v), strict=True):
                span.write(grad, full[rows])
        grad_first_state[rows] = grad_carried
    return grad_q, grad_k, grad_v, grad_first_state


class _Buffers:
    """Memory that every span uses again, by name: fresh megabytes cost a page fault every 4 KB."""

    def __init__(self, v: Tensor) -> None:
        self.device, self.dtype = v.device, matmul_dtype(v)
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor in the memory of that name, by default in the products' dtype."""
        dtype = dtype or self.dtype
        size = math.prod(shape)
        memory = self._memory.get((name, dtype))
        if memory is None or memory.numel() < size:
            memory = self._memory[name, dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return memory[:size].view(shape)

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, batched, in the memory of that name."""
        return torch.bmm(a, b, out=self.take(name, (a.shape[0], a.shape[1], b.shape[2]), a.dtype))


@dataclass(frozen=True)
class _Span:
    """Consecutive chunks of one length, and their decays.

    to_query, to_key: [H, 1, C, 1] in the products' dtype, gamma^j and gamma^-j
    scan: [H, n+1, n+1] in the state's dtype: row i < n gives gamma S before chunk i, row n gives S
        after the span, as sums over S before the span (column 0) and each K'^T V (columns 1..n)
    """

    start: int
    num_chunks: int
    chunk: int
    to_query: Tensor
    to_key: Tensor
    scan: Tensor

    def view(self, x: Tensor) -> Tensor:
        """The span's part of x [rows, T, H, F] as [rows, H, n, C, F]."""
        part = x[:, self.start : self.start + self.num_chunks * self.chunk]
        return part.unflatten(1, (self.num_chunks, self.chunk)).permute(0, 3, 1, 2, 4)

    def pack(self, x: Tensor, buffers: _Buffers, name: str, factor: Tensor | None = None) -> Tensor:
        """The span's part of x [rows, T, H, F], times the factor, as tiles [rows H n, C, F]."""
        part = self.view(x)
        packed = buffers.take(name, part.shape)
        if factor is not None and x.dtype == packed.dtype:
            torch.mul(part, factor, out=packed)
        else:
            packed.copy_(part)
            if factor is not None:
                packed.mul_(factor)
        return packed.flatten(0, 2)

    def write(self, tiles: Tensor, x: Tensor) -> None:
        """Copy tiles [G, C, F] to the span's part of x [rows, T, H, F]."""
        part = self.view(x)
        part.copy_(tiles.view(part.shape))


@dataclass(frozen=True)
class _SegmentMasks:
    """Who sees whom, where a row holds several segments. A boundary cuts the sums of Eq. 7 in four
    places.

    within: [G, C, C], token and token of one chunk
    read: [G, C, 1], token and the state before its chunk
    enter: [G, C, 1], token and the state after its chunk
    across: [rows, 1, n+1, n+1], states, as in `_Span.scan`
    """

    within: Tensor
    read: Tensor
    enter: Tensor
    across: Tensor

    @classmethod
    def of(cls, span: _Span, runs: Tensor, heads: int) -> "_SegmentMasks":
        """The masks of a span, given the segment runs [rows, T] of its rows."""
        here = runs[:, span.start : span.start + span.num_chunks * span.chunk].unflatten(
            1, (-1, span.chunk)
        )
        first = (
            runs[:, span.start - 1 : span.start] if span.start else torch.zeros_like(runs[:, :1])
        )
        ends = torch.cat([first, here[:, :, -1]], dim=1)
        within = here[..., :, None] == here[..., None, :]
        read, enter = here == ends[:, :-1, None], here == ends[:, 1:, None]
        return cls(
            within=_for_each_head(within, heads),
            read=_for_each_head(read[..., None], heads),
            enter=_for_each_head(enter[..., None], heads),
            across=(ends[:, :, None] == ends[:, None, :])[:, None],
        )


@dataclass(frozen=True)
class _Tiles:
    """What a span's products read: decayed q and k [G, C, K], v [G, C, V], who sees whom."""

    span: _Span
    q: Tensor
    k: Tensor
    v: Tensor
    masks: _SegmentMasks | None
    buffers: _Buffers

    @classmethod
    def pack(
        cls,
        span: _Span,
        rows: slice,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        runs: Tensor | None,
        buffers: _Buffers,
    ) -> "_Tiles":
        return cls(
            span=span,
            q=span.pack(q[rows], buffers, "q", span.to_query),
            k=span.pack(k[rows], buffers, "k", span.to_key),
            v=span.pack(v[rows], buffers, "v"),
            masks=None if runs is None else _SegmentMasks.of(span, runs[rows], heads=v.shape[2]),
            buffers=buffers,
        )

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The visible part of queries keys^T: [G, C, C]. The next call overwrites it."""
        scores = self.buffers.product("scores", queries, keys.mT).tril_()
        return scores if self.masks is None else scores.mul_(self.masks.within)

    def that_read(self, x: Tensor) -> Tensor:
        """x [G, C, F] of the tokens that see the state before their chunk, zeros for the others."""
        return x if self.masks is None else x * self.masks.read

    def that_enter(self, x: Tensor) -> Tensor:
        """x [G, C, F] of the tokens that the state after their chunk holds, zeros for others."""
        return x if self.masks is None else x * self.masks.enter

    def states(self, carried: Tensor) -> tuple[Tensor, Tensor]:
        """gamma S before each chunk [G, K, V] and S after the span, given S before it."""
        updates = self._by_chunk(
            self.buffers.product("updates", self.k.mT, self.that_enter(self.v)), carried
        )
        first, scan = carried.reshape(len(updates), 1, -1), self._scan(carried)
        before = self.buffers.take("before", updates.shape, updates.dtype)
        torch.mul(scan[:, :-1, :1], first, out=before).baddbmm_(scan[:, :-1, 1:], updates)
        after = torch.baddbmm(scan[:, -1:, :1] * first, scan[:, -1:, 1:], updates)
        return before.view(-1, *carried.shape[2:]).to(self.v.dtype), after.view(carried.shape)

    def states_backward(self, grad_before: Tensor, grad_after: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of each chunk's K'^T V and of the state before the span."""
        grads = self._by_chunk(grad_before, grad_after)
        last, scan = grad_after.reshape(len(grads), 1, -1), self._scan(grad_after).mT
        grad_updates = self.buffers.take("grad_updates", grads.shape, grads.dtype)
        torch.mul(scan[:, 1:, -1:], last, out=grad_updates).baddbmm_(scan[:, 1:, :-1], grads)
        grad_carried = torch.baddbmm(scan[:, :1, -1:] * last, scan[:, :1, :-1], grads)
        return grad_updates.view(grad_before.shape).to(self.v.dtype), grad_carried.view(
            grad_after.shape
        )

    def _by_chunk(self, tiles: Tensor, state: Tensor) -> Tensor:
        """Tiles [rows H n, K, V] as [rows H, n, K V] in the dtype of the state [rows, H, K, V]."""
        return tiles.to(state.dtype).view(state.shape[0] * state.shape[1], self.span.num_chunks, -1)

    def _scan(self, state: Tensor) -> Tensor:
        """`_Span.scan` without what a boundary cuts, [rows H, n+1, n+1]."""
        scan = self.span.scan if self.masks is None else self.span.scan * self.masks.across
        return scan.expand(*state.shape[:2], -1, -1).flatten(0, 1)


def _span_forward(tiles: _Tiles, carried: Tensor) -> tuple[Tensor, Tensor]:
    """A span's outputs [G, C, V] and the state after it [rows, H, K, V], given the one before."""
    before, after = tiles.states(carried)
    out = tiles.buffers.product("out", tiles.scores(tiles.q, tiles.k), tiles.v)
    return out.baddbmm_(tiles.that_read(tiles.q), before), after


def _span_backward(
    tiles: _Tiles, carried: Tensor, grad_out: Tensor, grad_after: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a span's q, k, v tiles and of the state before it [rows, H, K, V]."""
    q, k, v, product = tiles.q, tiles.k, tiles.v, tiles.buffers.product
    before, _ = tiles.states(carried)
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
    for grad, factor in ((grad_q, tiles.span.to_query), (grad_k, tiles.span.to_key)):
        grad.view(-1, len(factor), tiles.span.num_chunks, *grad.shape[1:]).mul_(factor)
    return grad_q, grad_k, grad_v, grad_carried


def _row_groups(v: Tensor, decay: Tensor, chunk: int) -> list[tuple[slice, list[_Span]]]:
    """The rows and spans that v [B, T, H, V] is worked through in."""
    batch, tokens, heads, value_size = v.shape
    on_cpu = v.device.type == "cpu"
    row_numbers = ROW_NUMBERS if on_cpu else DEVICE_ROW_NUMBERS
    numbers_a_chunk = heads * chunk * max(value_size, chunk)
    num_chunks = max(1, min(row_numbers // numbers_a_chunk, tokens // chunk))
    num_rows = max(
        1, (SPAN_NUMBERS if on_cpu else DEVICE_SPAN_NUMBERS) // (num_chunks * numbers_a_chunk)
    )
    spans = list(_spans(v, decay, chunk, num_chunks))
    return [(slice(row, row + num_rows), spans) for row in range(0, batch, num_rows)]


def _spans(v: Tensor, decay: Tensor, chunk: int, num_chunks: int) -> Iterator[_Span]:
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
        decays = _decays(v, decay, chunks_now, chunk_now)
        while start + chunks_now * chunk_now <= tokens:
            yield _Span(start, chunks_now, chunk_now, *decays)
            start += chunks_now * chunk_now


def _decays(v: Tensor, decay: Tensor, num_chunks: int, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """to_query, to_key and scan of a span."""
    position = torch.arange(chunk)
    to_query, to_key = (
        power(decay, exponent)[:, None, :, None] for exponent in (position, -position)
    )
    # S before chunk i holds S_0 after i chunks, and K'^T V of chunk m after (i - m) C - 1 tokens.
    column = torch.arange(num_chunks + 1)
    tokens_ago = chunk * (column[:, None] - column + column.sign()) - column.sign()
    tokens_ago[:-1] += 1  # gamma S
    scan = power(decay, tokens_ago.clamp(min=0)).tril()
    dtype, state_dtype = matmul_dtype(v), accumulation_dtype(v.dtype)
    return to_query.to(v.device, dtype), to_key.to(v.device, dtype), scan.to(v.device, state_dtype)


def _for_each_head(mask: Tensor, heads: int) -> Tensor:
    """mask [rows, n, C, .] repeated for the tiles [rows H n, C, .]."""
    rows, num_chunks, *rest = mask.shape
    return mask[:, None].expand(rows, heads, num_chunks, *rest).flatten(0, 2)
