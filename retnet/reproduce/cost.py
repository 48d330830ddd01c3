"""Cells that measure what reading and writing cost, and exponents of what they found."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from retnet.config import ModelConfig
from retnet.decoding import Decoder
from retnet.generation import step
from retnet.loss import linear_next_token_loss
from retnet.measure import Timing, in_fresh_process, measure, peak_rise_bytes, threads_of_others
from retnet.model import RetNet, RetNetState
from retnet.reproduce.attention_decoder import AttentionDecoder, KeyValueCache
from retnet.reproduce.cells import Place, Values

Model = Mapping[str, Any]


def measure_step_cost(
    place: Place, *, model: Model, lengths: Sequence[int], steps: int, rounds: int
) -> Values:
    """What a step of a model costs after so many tokens, by `retnet.step`, a row alone: seconds of
    each round, and the bytes of the state. Lengths take turns.
    """
    net = _model(model)
    states = {length: _state_after(net, length) for length in lengths}
    token = torch.zeros(1, dtype=torch.int64)

    @torch.inference_mode()
    def write(state: RetNetState) -> None:
        for _ in range(steps):
            step(net, token, state)

    timings = measure(
        {str(length): partial(write, state) for length, state in states.items()}, rounds
    )
    return {
        "busy": threads_of_others(),
        "state_bytes": [states[length].num_bytes for length in lengths],
        "step_s": [_each(timings[str(length)], steps) for length in lengths],
    }


@torch.inference_mode()
def _state_after(model: RetNet, length: int) -> RetNetState:
    tokens = torch.randint(model.config.vocab_size, (1, length))
    return model.features(tokens)[1]


def measure_training_cost(
    place: Place, *, model: Model, lengths: Sequence[int], rounds: int, fused: bool = True
) -> Values:
    """What a training step costs on one row of so many tokens: seconds of each round, in which
    lengths take turns, and the bytes by which memory rises in a process of its own.

    fused: whether attention is torch's fused one, which never holds all scores at once.
    """
    # First, while this process holds no memory of its own for it.
    num_threads = torch.get_num_threads()
    peaks = in_fresh_process(_training_peaks, dict(model), lengths, num_threads, fused=fused)
    net = _model(model).train()
    train = {
        str(length): partial(_train, net, _tokens(net, length), fused=fused) for length in lengths
    }
    timings = measure(train, rounds)
    return {
        "busy": threads_of_others(),
        "step_s": [list(timings[str(length)].seconds) for length in lengths],
        "peak_bytes": peaks,
    }


def _training_peaks(
    model: Model, lengths: Sequence[int], num_threads: int, *, fused: bool
) -> list[int]:
    """How far memory rises in a step's two passes, after one of a few tokens; ascending lengths."""
    torch.set_num_threads(num_threads)
    net = _model(model).train()
    _train(net, _tokens(net, 16), fused=fused)
    return [
        peak_rise_bytes(partial(_train, net, _tokens(net, length), fused=fused))
        for length in lengths
    ]


def _tokens(model: RetNet, length: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (1, length + 1))


def _train(model: RetNet, tokens: torch.Tensor, *, fused: bool) -> None:
    context: AbstractContextManager[object] = nullcontext()
    if not fused:
        context = sdpa_kernel(SDPBackend.MATH)
    with context:
        features, _ = model.features(tokens[:, :-1])
        linear_next_token_loss(features, model.head_weight, tokens[:, 1:]).backward()
    model.zero_grad(set_to_none=True)


def measure_decoding(
    place: Place,
    *,
    retnet: Model,
    transformer: Model,
    length: int,
    batch_sizes: Sequence[int],
    dtype: str,
    steps: int,
    rounds: int,
) -> Values:
    """Seconds of a step after so many tokens in so many rows, of a RetNet and a Transformer in
    turns: the RetNet as it is served, by torch's products as the Transformer is, and by
    `retnet.step`; and the bytes of what they remember.

    States and caches hold zeros: a step's time does not depend on the numbers.
    """
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    ours = _model(retnet).to(kind)
    served, by_torch = Decoder(ours), Decoder(ours, kernel="torch")
    theirs = AttentionDecoder(_model(transformer).to(kind))
    found: dict[str, Any] = {"kernel": served.kernel_name, "busy": threads_of_others(), "rows": []}
    for batch_size in batch_sizes:
        cache = theirs.new_cache(batch_size, length + steps)
        state, tokens = served.new_state(batch_size), torch.zeros(batch_size, dtype=torch.int64)
        state = RetNetState(state.layers, torch.full_like(state.position, length))
        turns = {
            "RetNet": partial(_decode, served, tokens, state, steps),
            "RetNet, by torch": partial(_decode, by_torch, tokens, state, steps),
            "RetNet, plain step": partial(_write, ours, tokens, state, steps),
            "Transformer": partial(_attend, theirs, tokens, cache, length, steps),
        }
        timings = measure(turns, rounds)
        cache.filled = length
        for name, timing in timings.items():
            held = cache.num_bytes if name == "Transformer" else state.num_bytes
            row = {"model": name, "batch_size": batch_size, "step_s": _each(timing, steps)}
            found["rows"].append({**row, "state_bytes": held})
    models = {"RetNet": ours, "Transformer": theirs.model}
    found["weight_bytes"] = {name: _weight_bytes(each) for name, each in models.items()}
    return found


def _decode(ours: Decoder, tokens: torch.Tensor, state: RetNetState, steps: int) -> None:
    rows = torch.arange(len(tokens))
    for _ in range(steps):
        ours.step_(tokens, state, rows)


@torch.inference_mode()
def _write(model: RetNet, tokens: torch.Tensor, state: RetNetState, steps: int) -> None:
    for _ in range(steps):
        _, state = step(model, tokens, state)


def _attend(
    theirs: AttentionDecoder, tokens: torch.Tensor, cache: KeyValueCache, length: int, steps: int
) -> None:
    cache.filled = length
    for _ in range(steps):
        theirs.step_(tokens, cache)


def _weight_bytes(model: RetNet) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _model(fields: Model) -> RetNet:
    weights = torch.Generator().manual_seed(0)
    return RetNet(ModelConfig.from_dict(fields), generator=weights).eval()


def _each(timing: Timing, count: int) -> list[float]:
    return list(timing.divided_by(count).seconds)


def exponent(lengths: Sequence[int], values: Sequence[float]) -> float:
    """p of values that go as length^p: the slope of their logarithms, by least squares."""
    slope, _ = np.polyfit(np.log(lengths), np.log(values), 1)
    return float(slope)


def exponents(lengths: Sequence[int], rounds_of: Sequence[Sequence[float]]) -> list[float]:
    """The exponent of each round; rounds_of: the rounds of each length."""
    return [exponent(lengths, values) for values in zip(*rounds_of, strict=True)]
