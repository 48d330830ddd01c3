"""Spans and tiles: what the products of the fast chunkwise form read and write.

A span is some consecutive chunks; a tile is one row, head and chunk of it. The algebra is on the
first page of `torch_chunkwise`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retnet.ops.precision import matmul_dtype
from retnet.ops.reference import accumulation_dtype, power


class Buffers:
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

    def release(self, name: str) -> None:
        """Leave what was last taken under that name, in the products' dtype, to whoever has it."""
        self._memory.pop((name, self.dtype), None)

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, batched, in the memory of that name."""
        return torch.bmm(a, b, out=self.take(name, (a.shape[0], a.shape[1], b.shape[2]), a.dtype))


@dataclass(frozen=True)
class Span:
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

    def pack(self, x: Tensor, buffers: Buffers, name: str, factor: Tensor | None = None) -> Tensor:
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

    def write(self, tiles: Tensor, x: Tensor, factor: Tensor | None = None) -> None:
        """Copy tiles [G, C, F], times the factor, to the span's part of x [rows, T, H, F]."""
        part = self.view(x)
        if factor is None:
            part.copy_(tiles.view(part.shape))
        else:
            torch.mul(tiles.view(part.shape), factor, out=part)


@dataclass(frozen=True)
class _SegmentMasks:
    """Who sees whom, where a row holds several segments. A boundary cuts the sums of Eq. 7 in four
    places.

    within: [G, C, C], token and token of one chunk
    read: [G, C, 1], token and the state before its chunk
    enter: [G, C, 1], token and the state after its chunk
    across: [rows, 1, n+1, n+1], states, as in `Span.scan`
    """

    within: Tensor
    read: Tensor
    enter: Tensor
    across: Tensor

    @classmethod
    def of(cls, span: Span, runs: Tensor, heads: int) -> "_SegmentMasks":
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
class Tiles:
    """What a span's products read: decayed q and k [G, C, K], v [G, C, V], who sees whom."""

    span: Span
    q: Tensor
    k: Tensor
    v: Tensor
    masks: _SegmentMasks | None
    buffers: Buffers

    @classmethod
    def pack(
        cls,
        span: Span,
        rows: slice,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        runs: Tensor | None,
        buffers: Buffers,
    ) -> "Tiles":
        """The tiles of a span and some rows, from q, k [B, T, H, K], v [B, T, H, V]."""
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
        updates = self.buffers.product("updates", self.k.mT, self.that_enter(self.v))
        terms, scan = self._terms(carried), self._scan(carried)
        terms[:, :1], terms[:, 1:] = _by_head(carried, terms), _by_head(updates, terms)
        after = torch.bmm(scan[:, -1:], terms)
        return self._sums("before", scan[:, :-1], terms, updates), after.view(carried.shape)

    def states_backward(self, grad_before: Tensor, grad_after: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of each chunk's K'^T V and of the state before the span."""
        grads, scan = self._terms(grad_after), self._scan(grad_after).mT
        grads[:, :-1], grads[:, -1:] = _by_head(grad_before, grads), _by_head(grad_after, grads)
        grad_carried = torch.bmm(scan[:, :1], grads)
        grad_updates = self._sums("grad_updates", scan[:, 1:], grads, grad_before)
        return grad_updates, grad_carried.view(grad_after.shape)

    def _terms(self, state: Tensor) -> Tensor:
        """Room for n+1 states like [rows, H, K, V], for the scan: [rows H, n+1, K V]."""
        rows, heads, *size = state.shape
        shape = (rows * heads, self.span.num_chunks + 1, math.prod(size))
        return self.buffers.take("terms", shape, state.dtype)

    def _sums(self, name: str, scan: Tensor, terms: Tensor, like: Tensor) -> Tensor:
        """scan terms, [rows H, n, K V], as tiles like [G, K, V]."""
        sums = self.buffers.product(name, scan, terms)
        if sums.dtype != like.dtype:
            sums = self.buffers.take(name, sums.shape).copy_(sums)
        return sums.view(like.shape)

    def _scan(self, state: Tensor) -> Tensor:
        """`Span.scan` without what a boundary cuts, [rows H, n+1, n+1]."""
        scan = self.span.scan if self.masks is None else self.span.scan * self.masks.across
        return scan.expand(*state.shape[:2], -1, -1).flatten(0, 1)


def span_decays(
    v: Tensor, decay: Tensor, num_chunks: int, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
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


def _by_head(states: Tensor, terms: Tensor) -> Tensor:
    """States [rows, H, K, V], or tiles of them [rows H n, K, V], as terms [rows H, n, K V]."""
    return states.reshape(terms.shape[0], -1, terms.shape[2])
