"""What Transformers passes to a model, in this project's terms: masks, positions, packed rows."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from retnet.config import ModelConfig
from retnet.generation import check_left_padding
from retnet.hf.cache import RetNetCache
from retnet.model import RetNetState


@dataclass(frozen=True)
class Padding:
    """Which of the new columns are tokens.

    mask: [B, T] bool, or None where all are.
    is_right: whether padding follows a token anywhere, so that the state after is of no use.
    """

    mask: Tensor | None
    is_right: bool


def read_padding(attention_mask: Tensor | None, num_tokens: int) -> Padding:
    """The part of an attention mask [B, columns so far + T] that is about the last T columns.

    ValueError for masks of attention scores (4-D), and for padding between tokens.
    """
    if attention_mask is None:
        return Padding(None, False)
    if attention_mask.dim() != 2 or attention_mask.shape[1] < num_tokens:
        raise ValueError(
            f"attention_mask must be [B, T], with 1 for tokens and 0 for padding, and T at least "
            f"the {num_tokens} new tokens, got {list(attention_mask.shape)}; retention has no "
            "masks of scores: pass seq_idx for documents packed in a row"
        )
    mask = attention_mask[:, -num_tokens:].bool()
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


def past_state(
    cache: object, padding: Padding, batch: int, config: ModelConfig
) -> RetNetState | None:
    """The state in `past_key_values`.

    TypeError for a cache of another kind; ValueError for one of another model or batch, and for
    padding after it.
    """
    if cache is None:
        return None
    if not isinstance(cache, RetNetCache):
        raise TypeError(
            f"past_key_values must be a RetNetCache, got {type(cache).__name__}: a RetNet keeps a "
            "state of constant size, not keys and values. Pass none and one is made, or "
            "RetNetCache(model.config)"
        )
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
    if padding.mask is not None and not torch.compiler.is_compiling():
        check_left_padding(padding.mask, state)
    return state


def read_segments(
    seq_idx: Tensor | None,
    position_ids: Tensor | None,
    padding: Padding,
    state: RetNetState | None,
) -> Tensor | None:
    """Which document each token belongs to, [B, T], or None where each row holds one.

    From `seq_idx` where it is given, else from position_ids that begin again at 0. What else they
    say is only checked: a token's position follows from those before it.
    """
    if seq_idx is not None or position_ids is None:
        return seq_idx
    if padding.mask is not None:
        position_ids = position_ids.expand_as(padding.mask)
    follows = position_ids.diff(dim=1) == 1
    if padding.mask is not None:  # the positions of padding mean nothing
        follows = follows | ~padding.mask[:, :-1] | ~padding.mask[:, 1:]
    if not torch.compiler.is_compiling():
        _check_positions(position_ids, follows, padding, state)
        if follows.all():
            return None
    return pad(~follows, (1, 0)).cumsum(dim=1)


def _check_positions(
    position_ids: Tensor, follows: Tensor, padding: Padding, state: RetNetState | None
) -> None:
    if (position_ids[:, 1:][~follows] != 0).any():
        raise ValueError(
            "position_ids must count up by one, or begin again at 0 with another document, got "
            "a jump; retention forgets by the token, so that positions can't be left out"
        )
    if state is None:
        return  # where a first document begins makes no difference: rotations are relative
    is_token = torch.ones_like(position_ids, dtype=torch.bool)
    first = (is_token if padding.mask is None else padding.mask).int().argmax(dim=1)
    begins = position_ids.gather(1, first[:, None].expand(len(position_ids), 1))[:, 0]
    if (begins != state.position).any():
        raise ValueError(
            f"position_ids must go on where the cache stopped, at {state.position.tolist()}, got "
            f"{begins.tolist()}; positions count tokens, not padding"
        )
