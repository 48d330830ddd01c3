"""Inference on token ids, in the memory of one state: read a prompt, step, choose a token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retnet.model import RetNet, RetNetState
from retnet.ops import retention_recurrent

PREFILL_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    Attributes:
        max_tokens: the most tokens to generate for a row; None for no limit.
        temperature: logits are divided by it; 0 always takes the likeliest token.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together reach this probability; 1 for all.
        min_p: only tokens at least this likely compared with the likeliest; 0 for all.
        repetition_penalty: logits of tokens already there are divided by it if positive, multiplied
            if negative.
        stop_tokens: ids that end a row; the id itself is still given out.
        stop: strings that end a text; used by `retnet.text`, where the string itself is not given
            out.
    """

    max_tokens: int | None = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, holds, expected in (
            (
                "max_tokens",
                self.max_tokens is None or self.max_tokens >= 0,
                ">= 0, or None for no limit",
            ),
            ("temperature", 0 <= self.temperature < float("inf"), ">= 0 and finite; 0 is greedy"),
            ("top_k", self.top_k >= 0, ">= 0; 0 keeps all tokens"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]; 1 keeps all tokens"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]; 0 keeps all tokens"),
            (
                "repetition_penalty",
                0 < self.repetition_penalty < float("inf"),
                "> 0 and finite; 1 is none",
            ),
            (
                "stop",
                isinstance(self.stop, tuple | list) and all(self.stop),
                "a list of strings that are not empty",
            ),
        ):
            if not holds:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")


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


def sample(
    logits: Tensor, params: SamplingParams, generator: torch.Generator | None = None
) -> Tensor:
    """Choose a token for each row of scores: [B, vocab_size] -> [B] int64."""
    logits = logits.float()
    if params.temperature == 0:
        return logits.argmax(dim=-1)
    # From the largest down, so that a tiny temperature divides to -inf and never to inf.
    below = logits - logits.amax(dim=-1, keepdim=True)
    probabilities = torch.softmax(below.double() / params.temperature, dim=-1).float()
    return torch.multinomial(_likely(probabilities, params), 1, generator=generator)[:, 0]


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
    seen = _seen(tokens, mask, logits) if params.repetition_penalty != 1 else None
    stop_tokens = torch.tensor(params.stop_tokens, dtype=torch.int64, device=tokens.device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    num_tokens = 0
    while params.max_tokens is None or num_tokens < params.max_tokens:
        if seen is not None:
            logits = _penalised(logits, seen, params.repetition_penalty)
        chosen = sample(logits, params, generator)
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
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


def _seen(tokens: Tensor, mask: Tensor | None, logits: Tensor) -> Tensor:
    """Which tokens stand in each row: [B, vocab_size] bool."""
    counts = torch.zeros_like(logits, dtype=torch.int64)
    ones = torch.ones_like(tokens) if mask is None else mask.long()
    return counts.scatter_add_(1, tokens, ones) > 0


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _likely(probabilities: Tensor, params: SamplingParams) -> Tensor:
    """The probabilities with those cut to zero that top_k, top_p and min_p leave out."""
    largest = probabilities.amax(dim=-1, keepdim=True)
    kept = probabilities.masked_fill(probabilities < params.min_p * largest, 0)
    if 0 < params.top_k < probabilities.shape[-1]:
        first = probabilities.topk(params.top_k, dim=-1).indices
        kept = kept.masked_fill(torch.ones_like(kept, dtype=torch.bool).scatter(1, first, False), 0)
    if params.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= params.top_p
        kept = kept.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0)
    return kept
