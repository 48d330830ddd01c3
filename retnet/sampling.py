"""How a token is chosen from the scores that a model gives: penalties, cuts, one draw a row.

Every row is worked on by itself: what is chosen for it does not depend on the rows beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

# Of so many of the likeliest tokens most cuts keep a part; finding them is far from sorting all.
_FEW = 256


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
        frequency_penalty: taken from a token's logit for every time that it was generated.
        presence_penalty: taken from the logits of the tokens that were generated at all.
        logit_bias: what is added to the logits of some tokens, by id.
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
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
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
            ("frequency_penalty", isfinite(self.frequency_penalty), "finite; 0 is none"),
            ("presence_penalty", isfinite(self.presence_penalty), "finite; 0 is none"),
            (
                "logit_bias",
                all(token >= 0 and isfinite(bias) for token, bias in self.logit_bias.items()),
                "finite numbers by the ids of tokens",
            ),
            (
                "stop",
                isinstance(self.stop, tuple | list) and all(self.stop),
                "a list of strings that are not empty",
            ),
        ):
            if not holds:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def penalises(self) -> bool:
        """Whether what a row holds already counts for what comes next."""
        return (
            self.repetition_penalty != 1
            or self.frequency_penalty != 0
            or self.presence_penalty != 0
        )


class History:
    """The tokens that a row holds, as far as penalties ask for them.

    prompt: [T] int64; device: where logits are.
    """

    def __init__(self, prompt: Tensor, vocab_size: int, device: torch.device) -> None:
        self._in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._in_prompt[prompt.to(device)] = True
        self._generated = torch.zeros(vocab_size, device=device)

    def append(self, token: int) -> None:
        """Count a generated token."""
        self._generated[token] += 1

    def penalised(self, logits: Tensor, params: SamplingParams) -> Tensor:
        """The logits [vocab_size] after the penalties of params."""
        generated = self._generated > 0
        by = params.repetition_penalty
        repeated = torch.where(logits > 0, logits / by, logits * by)
        logits = torch.where(self._in_prompt | generated, repeated, logits)
        return (
            logits
            - params.frequency_penalty * self._generated
            - params.presence_penalty * generated
        )


def adjusted(logits: Tensor, params: SamplingParams, history: History | None) -> Tensor:
    """The logits [vocab_size] of a row after its penalties and biases."""
    if history is not None:
        logits = history.penalised(logits, params)
    if params.logit_bias:
        index = torch.tensor(list(params.logit_bias), device=logits.device)
        bias = torch.tensor(list(params.logit_bias.values()), device=logits.device)
        logits = logits.index_add(0, index, bias.to(logits.dtype))
    return logits


def sample(
    logits: Tensor, params: SamplingParams, generator: torch.Generator | None = None
) -> Tensor:
    """Choose a token for each row of scores: [B, vocab_size] -> [B] int64."""
    if params.temperature == 0:
        return logits.float().argmax(dim=-1)
    uniform = torch.rand(
        len(logits), dtype=torch.float64, device=logits.device, generator=generator
    )
    return choose(logits, [params] * len(logits), uniform)


def choose(logits: Tensor, params: Sequence[SamplingParams], uniform: Tensor) -> Tensor:
    """The token of each row, by its own params and its own number drawn from [0, 1).

    logits: [B, vocab_size]   uniform: [B] fp64, not read where the temperature is 0
    Returns [B] int64.
    """
    logits = logits.float()
    chosen = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    greedy, drawing = (
        [row for row, each in enumerate(params) if (each.temperature > 0) is draws]
        for draws in (False, True)
    )
    if greedy:
        chosen[greedy] = _rows(logits, greedy).argmax(dim=-1)
    if drawing:
        probabilities = _probabilities(_rows(logits, drawing), [params[row] for row in drawing])
        chosen[drawing] = _draw(probabilities, _rows(uniform, drawing))
    return chosen


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    """Rows of x, in rising order; no copy where they are all."""
    return x if len(rows) == len(x) else x[rows]


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The place of each row [B, vocab_size] at which its sum passes uniform [B] of the whole."""
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    aims = (uniform * sums[:, -1])[:, None]
    # To the right of all that equal it, so that no token of weight 0 is met.
    places = torch.searchsorted(sums, aims, right=True)[:, 0]
    if (places < weights.shape[-1]).all():
        return places
    # Rounding has brought an aim up to the whole sum: it is the last one that has weight.
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(dim=-1)
    return torch.minimum(places, last)


def _probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """[B, vocab_size]: those that temperature gives, and 0 for what is cut away."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    # From the largest down, so that a tiny temperature divides to -inf and never to inf.
    below = logits - logits.amax(dim=-1, keepdim=True)
    least = torch.finfo(logits.dtype).tiny
    temperature = column([max(each.temperature, least) for each in params])
    weights = torch.softmax(below / temperature.to(logits.dtype), dim=-1)
    if any(each.min_p for each in params):
        floor = column([each.min_p for each in params]) * weights.amax(dim=-1, keepdim=True)
        kept = weights.masked_fill(weights < floor, 0)
    else:
        kept = weights
    cut = [row for row, each in enumerate(params) if _cuts(each, weights.shape[-1])]
    if cut:
        rows = torch.tensor(cut, device=logits.device)
        beyond = _beyond_cut(
            weights[rows],
            column([params[row].top_k or weights.shape[-1] for row in cut]),
            column([params[row].top_p for row in cut]),
        )
        kept = kept.index_put((rows,), kept[rows].masked_fill(beyond, 0))
    return kept


def _cuts(params: SamplingParams, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size or params.top_p < 1


def _beyond_cut(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Which tokens [B, vocab_size] are neither among the top_k nor needed to reach top_p [B, 1]."""
    few = min(_FEW, weights.shape[-1])
    ordered, order = weights.topk(few, dim=-1)
    beyond = torch.ones_like(weights, dtype=torch.bool)
    beyond.scatter_(1, order, _past(ordered, top_k, top_p))
    # Rows whose cut lies beyond those few are sorted. By row: neighbours must not matter.
    enough = (top_k <= few) | (ordered.sum(dim=-1, keepdim=True, dtype=torch.float64) >= top_p)
    rest = (~enough[:, 0]).nonzero()[:, 0]
    if len(rest):
        ordered, order = weights[rest].sort(dim=-1, descending=True, stable=True)
        past = _past(ordered, top_k[rest], top_p[rest])
        beyond[rest] = torch.zeros_like(past).scatter(1, order, past)
    return beyond


def _past(ordered: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The same for weights from the likeliest down."""
    ranks = torch.arange(ordered.shape[-1], device=ordered.device)
    exact = ordered.double()
    return (ranks >= top_k) | (exact.cumsum(dim=-1) - exact >= top_p)
