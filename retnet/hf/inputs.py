"""What Transformers passes to a model, in this project's terms: masks, positions, packed rows."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.modeling_outputs import CausalLMOutputWithPast

from retnet.config import ModelConfig
from retnet.hf.cache import RetNetCache
from retnet.model import RetNetState

# What Transformers calls a cache, as an argument and in what a model returns.
CACHE_NAME = (
    "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
)


@dataclass(frozen=True)
class Padding:
    """Which of the new columns are tokens.

    mask: [B, T] bool, or None where all are.
    is_right: whether padding follows a token anywhere, so that the state after is of no use.
    """

    mask: Tensor | None
    is_right: bool


def check_shapes(
    x: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, num_columns: int
) -> None:
    """ValueError for a mask or positions that don't belong to embeddings x [B, T].

    num_columns: those read before.
    """
    if x.dim() != 3:
        raise ValueError(
            f"input_ids must be [B, T], got {list(x.shape[:-1])}; wrap a row in a list"
        )
    batch, length = x.shape[:2]
    if position_ids is not None:
        rows, columns = position_ids.shape if position_ids.dim() == 2 else (0, 0)
        if columns != length or (rows != batch and rows != 1):
            raise ValueError(
                f"position_ids must be [{batch}, {length}] or [1, {length}], one for each new "
                f"token, got {list(position_ids.shape)}"
            )
    if attention_mask is None:
        return
    if attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask must be [B, T], with 1 for tokens and 0 for padding, got "
            f"{list(attention_mask.shape)}; retention has no masks of scores: pass seq_idx for "
            "documents packed in a row"
        )
    rows, columns = attention_mask.shape
    if rows != batch or columns < length or (num_columns == 0 and columns != length):
        raise ValueError(
            f"attention_mask must be [{batch}, {num_columns} columns read before + {length}] or "
            f"[{batch}, {length}], got {list(attention_mask.shape)}"
        )


def read_padding(attention_mask: Tensor | None, num_tokens: int) -> Padding:
    """The part of an attention mask [B, columns so far + T] that is about the last T columns.

    ValueError for padding between tokens.
    """
    if attention_mask is None:
        return Padding(None, False)
    mask = attention_mask[:, attention_mask.shape[1] - num_tokens :].bool()
    if torch.compiler.is_compiling():  # values can't be looked at
        return Padding(mask, False)
    if mask.all():
        return Padding(None, False)
    steps = mask.int().diff(dim=1)
    ends = (steps < 0).int().cumsum(dim=1)
    if ((steps > 0) & (ends > 0)).any():
        raise ValueError(
            "attention_mask must have its padding on one side, got padding between tokens; "
            "remove it, or pad on the left"
        )
    return Padding(mask, bool(ends.any()))


def as_cache(past_key_values: object, cache: object) -> RetNetCache | None:
    """The cache that came under either name, or None; TypeError for one of another kind."""
    given = cache if past_key_values is None else past_key_values
    if given is None or isinstance(given, RetNetCache):
        return given
    raise TypeError(
        f"{CACHE_NAME} must be a RetNetCache, got {type(given).__name__}: a RetNet "
        "keeps a state of constant size, not keys and values. Pass none and one is made, or "
        "RetNetCache(model.config)"
    )


def past_state(
    cache: RetNetCache | None, padding: Padding, batch: int, config: ModelConfig
) -> RetNetState | None:
    """The state in a cache; ValueError for that of another model or batch, and for padding after
    it.
    """
    if cache is None:
        return None
    state = cache.state
    if state is None:
        return None
    shape = (batch, *config.state_shape)
    shapes = [tuple(layer.shape) for layer in state.layers]
    if len(shapes) != config.num_layers or any(each != shape for each in shapes):
        raise ValueError(
            f"past_key_values must hold {config.num_layers} states {list(shape)}, got "
            f"{len(shapes)} of {list(shapes[0])}; it belongs to another model or batch"
        )
    if padding.mask is None or torch.compiler.is_compiling():
        return state
    if (~padding.mask[:, :1] & (state.position > 0)[:, None]).any():
        raise ValueError(
            "attention_mask must not begin with padding in rows that past_key_values has read "
            "tokens of: it would age their state; batch rows of one length, or pad what the "
            "cache reads first"
        )
    return state


def read_segments(
    num_tokens: int,
    *,
    seq_idx: Tensor | None,
    cu_seq_lens: Tensor | None,
    position_ids: Tensor | None,
    padding: Padding,
    state: RetNetState | None,
) -> Tensor | None:
    """Which document each token belongs to, [B, T] or [1, T], or None where each row holds one.

    From `seq_idx` where it is given, else from `cu_seq_lens`, the columns [documents + 1] at which
    the documents of a single row begin and end; else from position_ids that begin again at 0. What
    else those say is only checked: a token's position follows from those before it.
    """
    starts = None if position_ids is None else _document_starts(position_ids, padding.mask)
    if position_ids is not None and starts is not None and not torch.compiler.is_compiling():
        _check_positions(position_ids, starts, padding.mask, state)
    if seq_idx is not None:
        return seq_idx
    if cu_seq_lens is not None:
        return _runs_between(cu_seq_lens, num_tokens)
    if starts is None or (not torch.compiler.is_compiling() and not starts.any()):
        return None
    return pad(starts, (1, 0)).cumsum(dim=1)


def _document_starts(position_ids: Tensor, mask: Tensor | None) -> Tensor:
    """Where the positions of two tokens don't follow each other: bool [B, T - 1]."""
    starts = position_ids.diff(dim=1) != 1
    # The positions of padding mean nothing.
    return starts if mask is None else starts & mask[:, :-1] & mask[:, 1:]


def _runs_between(cu_seq_lens: Tensor, num_tokens: int) -> Tensor:
    if not torch.compiler.is_compiling() and int(cu_seq_lens[-1]) != num_tokens:
        raise ValueError(
            f"cu_seq_lens_q must end at the {num_tokens} tokens of its row, got "
            f"{cu_seq_lens.tolist()}; pass position_ids or seq_idx for several rows"
        )
    columns = torch.arange(num_tokens, device=cu_seq_lens.device)
    return torch.bucketize(columns, cu_seq_lens[1:], right=True)[None]


def _check_positions(
    position_ids: Tensor, starts: Tensor, mask: Tensor | None, state: RetNetState | None
) -> None:
    if (starts & (position_ids[:, 1:] != 0)).any():
        raise ValueError(
            "position_ids must count up by one, or begin again at 0 with another document, got "
            "a jump; retention forgets by the token, so that positions can't be left out"
        )
    if state is None or position_ids.shape[1] == 0:
        return  # where a first document begins makes no difference: rotations are relative
    if mask is None:
        mask = torch.ones_like(position_ids, dtype=torch.bool)
    first = mask.int().argmax(dim=1, keepdim=True)
    begins = position_ids.expand_as(mask).gather(1, first)[:, 0]
    if ((begins != state.position) & mask.any(dim=1)).any():
        raise ValueError(
            f"position_ids must go on where the cache stopped, at {state.position.tolist()}, got "
            f"{begins.tolist()}; positions count tokens, not padding, and a prompt must go beyond "
            "what the cache has read"
        )
