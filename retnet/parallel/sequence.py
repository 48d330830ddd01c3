"""Rows whose tokens are spread over processes: each reads a slice, and states pass between them.

A layer exchanges one state [B, H, K, V] a process, however long the slices are. With S_0 the state
before the whole row and S_j what slice j = 1 ... R alone would leave, slices of T tokens each, the
state before slice i + 1 is

    sum_{j <= i} gamma^((i - j) T) S_j    (`combine_states`, folded)

but for what lies before the beginning of a document in between; i = R gives the state after the
row. Both directions of the exchange are this linear map, backwards its transpose.

A state that goes in or comes out is the whole row's, the same in every process of the sequence. Of
its gradient each has a part, and their sum is the gradient.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from retnet.ops.precision import without_autocast
from retnet.ops.reference import accumulation_dtype, power, segment_runs
from retnet.position import Retention, token_positions


@dataclass(frozen=True)
class SequenceSlice:
    """This process's slice of some rows.

    Attributes:
        tokens: the slice of the row.
        first: [B] int64, the position of its first token in that token's document.
        after: [B] int64, the position after the row's last token.
        visible: [B, R+1, R+1] bool, whether slice i + 1 (R: what follows the row) sees state j;
            None where each sees all before it.
        rank, size: its number, and R.
        group: the processes of the row.
    """

    tokens: slice
    first: Tensor
    after: Tensor
    visible: Tensor | None
    rank: int
    size: int
    group: dist.ProcessGroup

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        segment_ids: Tensor | None,
        position: Tensor | None,
        group: dist.ProcessGroup,
    ) -> "SequenceSlice":
        """The slice of rows of tokens [B, T], the first of which are at a position [B]."""
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        batch, length = tokens.shape
        if length % size:
            raise ValueError(
                f"rows of {length} tokens can't be spread over sequence {size} processes evenly; "
                "change one of them"
            )
        part = length // size
        positions, after = token_positions(tokens, position, None, segment_ids)
        visible = None
        if segment_ids is not None:
            runs = segment_runs(segment_ids, tokens)
            ends = torch.cat([torch.zeros_like(runs[:, :1]), runs[:, part - 1 :: part]], dim=1)
            begins = torch.cat([runs[:, ::part], ends[:, -1:]], dim=1)
            visible = begins[:, :, None] == ends[:, None, :]
        return cls(
            tokens=slice(rank * part, (rank + 1) * part),
            first=positions[:, rank * part].expand(batch),
            after=after,
            visible=visible,
            rank=rank,
            size=size,
            group=group,
        )

    def cut(self, x: Tensor) -> Tensor:
        """The slice of [B, T, ...]."""
        return x[:, self.tokens].contiguous()

    def retain(self, form: Retention) -> Retention:
        """A form of retention over the whole row, of which it is given the slice."""

        def retain(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            log_decay: Tensor,
            state: Tensor | None = None,
            *,
            segment_ids: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]:
            own = slice_state(k, v, log_decay, segment_ids)
            first = torch.zeros_like(own) if state is None else state
            weights = self._weights(log_decay, own)
            before, after = _Exchange.apply(first, own, weights, self)  # type: ignore[no-untyped-call]
            out, _ = form(q, k, v, log_decay, before, segment_ids=segment_ids)
            return out, after

        return retain

    def _weights(self, log_decay: Tensor, like: Tensor) -> Tensor:
        """What of state j is in the state before slice i + 1: [1 or B, H, R+1, R+1]."""
        part = self.tokens.stop - self.tokens.start
        number = torch.arange(self.size + 1)
        slices_ago = number[:, None] - number
        decays = power(log_decay, part * slices_ago.clamp(min=0)).tril()[None]
        decays = decays.to(like.device, like.dtype)
        return decays if self.visible is None else decays * self.visible[:, None]


def slice_state(k: Tensor, v: Tensor, log_decay: Tensor, segment_ids: Tensor | None) -> Tensor:
    """The state [B, H, K, V] that k [B, T, H, K] and v [B, T, H, V] alone leave (Eq. 7)."""
    dtype = accumulation_dtype(v.dtype)
    tokens_after = torch.arange(k.shape[1] - 1, -1, -1)
    with without_autocast(k.device.type):
        factor = power(log_decay, tokens_after).mT[..., None].to(k.device, dtype)
        keys = k.to(dtype) * factor
        if segment_ids is not None:
            runs = segment_runs(segment_ids, k)
            keys = keys * (runs == runs[:, -1:])[..., None, None]
        return torch.einsum("bthk,bthv->bhkv", keys, v.to(dtype))


class _Exchange(torch.autograd.Function):
    """(The state before the row, this slice's own) -> the state before this slice, and after the
    row."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, own: Tensor, weights: Tensor, of: SequenceSlice
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weights)
        ctx.of = of
        states = torch.cat([first[None], _gathered(own, of)])
        return _mixed(weights[:, :, of.rank], states), _mixed(weights[:, :, of.size], states)

    @staticmethod
    def backward(
        ctx: Any, grad_before: Tensor, grad_after: Tensor
    ) -> tuple[Tensor | None, Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        of: SequenceSlice = ctx.of
        grads = _gathered(torch.stack([grad_before, grad_after]), of)
        grads = torch.cat([grads[:, 0], grads[:, 1].sum(dim=0, keepdim=True)])
        grad_own = _mixed(weights[..., of.rank + 1], grads)
        grad_first = None
        if ctx.needs_input_grad[0]:
            grad_first = torch.zeros_like(grad_own)
            if of.rank == 0:
                grad_first = _mixed(weights[..., 0], grads)
        return grad_first, grad_own, None, None


def _gathered(x: Tensor, of: SequenceSlice) -> Tensor:
    """Every process's x, [R, *x.shape]."""
    everyones = x.new_empty(of.size, *x.shape)
    dist.all_gather(list(everyones), x.contiguous(), group=of.group)
    return everyones


def _mixed(weights: Tensor, states: Tensor) -> Tensor:
    """The sum of states [R+1, B, H, K, V] by weights [1 or B, H, R+1]: [B, H, K, V]."""
    # Not a product of matrices, which autocast would round.
    return (weights.movedim(-1, 0)[..., None, None] * states).sum(dim=0)
