"""Inference on token ids, in the memory of one state: read a prompt, step, and go on."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retnet.model import RetNet, RetNetState
from retnet.ops import retention_recurrent
from retnet.sampling import History, SamplingParams, adjusted, sample

PREFILL_TOKENS = 2048


@torch.no_grad()
def prefill(
    model: RetNet,
    tokens: Tensor,
    state: RetNetState | None = None,
    *,
    mask: Tensor | None = None,
    piece: int = PREFILL_TOKENS,
) -> tuple[Tensor, RetNetState]:
    """Read tokens [B, T], T >= 1, in pieces, in memory that does not grow with T.

    Args:
        state: what was read before, or None.
        mask: [B, T] bool, True for tokens; padding stands on the left, of rows that have read
            nothing yet.
        piece: the most tokens to read at a time.

    Returns:
        The scores of the token after the last [B, vocab_size], and the state.

    Raises:
        ValueError: for an empty prompt, or padding elsewhere.
    """
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise ValueError(
            f"tokens must be [B, T] with T >= 1, got {list(tokens.shape)}; a prompt needs a token"
        )
    if piece < 1:
        raise ValueError(f"piece must be at least 1 token, got {piece}")
    _check_evaluating(model)
    if mask is not None:
        check_left_padding(mask, state)
    for start in range(0, tokens.shape[1], piece):
        part = slice(start, start + piece)
        part_mask = None if mask is None else mask[:, part]
        features, state = model.features(tokens[:, part], state, mask=part_mask)
    assert state is not None
    return model.logits(features[:, -1]), state


@torch.no_grad()
def step(model: RetNet, tokens: Tensor, state: RetNetState) -> tuple[Tensor, RetNetState]:
    """Read a token a row [B] in constant time (Eq. 6): scores [B, vocab_size] and the state."""
    _check_evaluating(model)
    features, state = model.features(tokens[:, None], state, retain=retention_recurrent)
    return model.logits(features[:, 0]), state


def generate(
    model: RetNet,
    prompts: Tensor | Sequence[Tensor],
    params: SamplingParams,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue prompts, token by token, until each row has met a stop token or its limit.

    Args:
        prompts: [B, T], or B sequences [T_b] of any lengths >= 1.
        params: see `SamplingParams`.
        generator: what sampling draws from; None for torch's default generator.

    Yields:
        [B] int64, the next token of each row; -1 for a row that has ended.
    """
    if any(prompt.dim() != 1 for prompt in prompts):
        raise ValueError("prompts must be [B, T], or sequences [T]; wrap a single one in a list")
    if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError(
            "prompts must hold at least one token each, got an empty one; begin with a bos token"
        )
    tokens, mask = _left_padded(prompts)
    logits, state = prefill(model, tokens, mask=mask)
    histories = _histories(prompts, params, logits)
    stop_tokens = torch.tensor(params.stop_tokens, dtype=torch.int64, device=tokens.device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    num_tokens = 0
    while params.max_tokens is None or num_tokens < params.max_tokens:
        if histories or params.logit_bias:
            logits = _adjusted(logits, params, histories)
        chosen = sample(logits, params, generator)
        for history, token in zip(histories, chosen.tolist(), strict=False):
            history.append(token)
        yield torch.where(ended, -1, chosen)
        num_tokens += 1
        ended = ended | torch.isin(chosen, stop_tokens)
        if ended.all() or num_tokens == params.max_tokens:
            return
        logits, state = step(model, chosen, state)


def check_left_padding(mask: Tensor, state: RetNetState | None = None) -> None:
    """Raise a ValueError unless mask [B, T] pads on the left only, and only rows without a past."""
    if (mask.int().diff(dim=1) < 0).any():
        raise ValueError(
            "mask must have its padding on the left, got padding after a token; pad on the left"
        )
    if state is not None and (~mask[:, 0] & (state.position > 0)).any():
        raise ValueError(
            "mask must not pad rows that have a state, got padding that would age it; "
            "batch rows of one length"
        )


def _check_evaluating(model: RetNet) -> None:
    if model.training and model.config.dropout:
        raise ValueError("model must not be training, where it drops out; call model.eval() first")


def _left_padded(prompts: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    if isinstance(prompts, Tensor):
        return prompts.long(), None
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    tokens = pad_sequence(list(prompts), batch_first=True, padding_side="left").long()
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    mask = steps >= tokens.shape[1] - lengths[:, None]
    return tokens, None if mask.all() else mask


def _histories(
    prompts: Tensor | Sequence[Tensor], params: SamplingParams, logits: Tensor
) -> list[History]:
    """That of each row where penalties ask for it, else none."""
    if not params.penalises:
        return []
    return [History(prompt.long(), logits.shape[-1], logits.device) for prompt in prompts]


def _adjusted(logits: Tensor, params: SamplingParams, histories: Sequence[History]) -> Tensor:
    rows: Sequence[History | None] = histories or [None] * len(logits)
    return torch.stack(
        [adjusted(row, params, history) for row, history in zip(logits, rows, strict=True)]
    )
