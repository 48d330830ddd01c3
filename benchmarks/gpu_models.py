"""Sections of bench_gpu.py about whole models: a training step, and decoding."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_frame import ATTENTION, Bench, Row
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from retnet.config import ModelConfig, preset
from retnet.decoding import Decoder, KernelName
from retnet.loss import linear_next_token_loss
from retnet.model import RetNet
from retnet.ops.backends import why_not

LAYERS_OF_SLICES = (2, 4)
# Name, kernel, and whether states are written once in 32 tokens; any context costs the same.
OURS: tuple[tuple[str, KernelName, bool], ...] = (
    ("RetNet", "triton", True),
    ("RetNet, states written", "triton", False),
    ("RetNet torch", "torch", False),
)
TOY = ModelConfig(vocab_size=64, d_model=32, num_layers=2, num_heads=2)


def training(bench: Bench) -> Iterator[Row]:
    """Steps of AdamW at 8,192 tokens in bf16: of a whole model where it fits, else of some of its
    layers, by which the whole is extrapolated.
    """
    tokens = 64 if bench.toy else 8_192
    sizes = {"toy": TOY} if bench.toy else {size: _config(size) for size in ("1.3b", "6.7b", "13b")}
    for size, config in sizes.items():
        whole = size in ("toy", "1.3b")
        for name in _trained(bench):
            if bench.is_late():
                return
            row = {"contender": name, "model": size, "tokens": tokens, "batch_size": 1}
            try:
                if whole:
                    yield {**row, **_step(bench, name, config, tokens)}
                else:
                    yield {**row, **_extrapolated(bench, name, config, tokens)}
            except Exception as error:
                yield {**row, "error": f"{type(error).__name__}: {error}"[:300]}
            bench.free()


def _config(size: str) -> ModelConfig:
    return replace(preset(size), dropout=0.0)


def _trained(bench: Bench) -> list[str]:
    """Who trains: RetNet by each backend, and a Transformer by each way of attention."""
    ours = [f"RetNet {name.removeprefix('ours ')}" for name in bench.backends()]
    return [*ours, *(f"Transformer {kind.removeprefix('sdpa ')}" for kind in ATTENTION)]


def _extrapolated(bench: Bench, name: str, config: ModelConfig, tokens: int) -> Row:
    few, more = (
        _step(bench, name, replace(config, num_layers=count), tokens) for count in LAYERS_OF_SLICES
    )
    first, second = LAYERS_OF_SLICES

    def at_all(key: str) -> float | None:
        if few[key] is None or more[key] is None:
            return None
        slope = (more[key] - few[key]) / (second - first)
        return more[key] + slope * (config.num_layers - second)

    ms = at_all("ms")
    assert ms is not None
    return {
        "ms": ms,
        "tokens_per_s": 1e3 * tokens / ms,
        "peak_gb": at_all("peak_gb"),
        "extrapolated_from_layers": list(LAYERS_OF_SLICES),
    }


def _step(bench: Bench, name: str, config: ModelConfig, tokens: int) -> Row:
    """The time and memory of a step of training."""
    family, way = name.split()
    way_of_attention: AbstractContextManager[None] = nullcontext()
    if family == "Transformer":
        config = _transformer(config)
        if bench.device.type == "cuda":
            way_of_attention = sdpa_kernel(ATTENTION[f"sdpa {way}"])
    model = _built(bench, config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    text = torch.randint(config.vocab_size, (1, tokens + 1), device=bench.device)
    retain = bench.backends().get(f"ours {way}", bench.backends().get(way))
    options = {} if family == "Transformer" or retain is None else {"retain": retain}

    def step() -> None:
        with way_of_attention:
            features, _ = model.features(text[:, :-1], **options)
            loss = linear_next_token_loss(features, model.head_weight, text[:, 1:])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ms = bench.ms(step, turns=5)
    return {"ms": ms, "tokens_per_s": 1e3 * tokens / ms, "peak_gb": bench.peak_gb(step)}


def _transformer(config: ModelConfig) -> ModelConfig:
    """A Transformer of as many layers as wide, with as many parameters; heads of 128."""
    return ModelConfig(
        mixer="attention",
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        num_layers=config.num_layers,
        num_heads=max(1, config.d_model // 128),
    )


def _built(bench: Bench, config: ModelConfig) -> RetNet:
    """A model in bf16, on the device."""
    with torch.device(bench.device):
        return RetNet(config).to(torch.bfloat16)


def decoding(bench: Bench) -> Iterator[Row]:
    """A token in each of some rows: RetNet's decoder, and a Transformer with a static cache, whose
    step is captured too.
    """
    contexts = (64,) if bench.toy else (8_192, 2_048)
    batches = (1, 3) if bench.toy else (1, 16, 64)
    sizes = {"toy": TOY} if bench.toy else {size: _config(size) for size in ("6.7b", "1.3b")}
    for size, config in sizes.items():
        model = _built(bench, config).eval()
        for batch, (name, kernel, defers) in itertools.product(batches, OURS):
            if bench.is_late():
                return
            row = {"contender": name, "model": size, "batch_size": batch, "context": contexts[0]}
            reason = why_not(kernel, bench.device, torch.bfloat16)
            if reason:
                yield {**row, "left_out": reason}
            else:
                make = partial(_Ours, bench, model, kernel, defers, batch)
                yield {**row, **_decoded(bench, make)}
        del model
        bench.free()
        transformer = _built(bench, _transformer(config)).eval()
        for batch, context in itertools.product(batches, contexts):
            if bench.is_late():
                return
            row = {
                "contender": "Transformer",
                "model": size,
                "batch_size": batch,
                "context": context,
            }
            yield {
                **row,
                **_decoded(bench, partial(_StaticTransformer, bench, transformer, batch, context)),
            }
        del transformer
        bench.free()


def _decoded(bench: Bench, make: Callable[[], Any]) -> Row:
    """Of a step that `make` prepares."""
    try:
        bench.free()
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
        step = make()
        ms = bench.ms(step, turns=30)
        batch = step.batch_size
        peak = None
        if bench.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(bench.device) / 2**30
        return {"ms": ms, "tokens_per_s": 1e3 * batch / ms, "peak_gb": peak}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


class _Ours:
    """RetNet's own decoder."""

    def __init__(
        self, bench: Bench, model: RetNet, kernel: KernelName, defers: bool, batch_size: int
    ) -> None:
        self.batch_size = batch_size
        self._decoder = Decoder(model, kernel=kernel, defers=defers)
        self._state = self._decoder.new_state(batch_size)
        self._rows = torch.arange(batch_size, device=bench.device)
        self._tokens = torch.zeros(batch_size, dtype=torch.int64, device=bench.device)

    def __call__(self) -> Tensor:
        return self._decoder.step_(self._tokens, self._state, self._rows)


class _StaticTransformer:
    """A step behind a cache of a fixed length, of random keys and values; captured on CUDA."""

    def __init__(self, bench: Bench, model: RetNet, batch_size: int, context: int) -> None:
        self.batch_size = batch_size
        config, self._model = model.config, model
        shape = (batch_size, config.num_heads, context, config.key_size)
        self._caches = [
            tuple(torch.zeros(shape, dtype=torch.bfloat16, device=bench.device) for _ in "kv")
            for _ in range(config.num_layers)
        ]
        self._tokens = torch.zeros(batch_size, dtype=torch.int64, device=bench.device)
        self._graph = None
        if bench.device.type == "cuda":
            aside = torch.cuda.Stream(bench.device)
            with torch.cuda.stream(aside):
                self._step()
            aside.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()

    def __call__(self) -> None:
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    @torch.no_grad()
    def _step(self) -> Tensor:
        model = self._model
        x = model.backbone.embed(self._tokens[:, None])
        for layer, (keys, values) in zip(model.backbone.layers, self._caches, strict=True):
            x = x + self._attend(layer, layer.mixer_norm(x), keys, values)
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
        return model.logits(model.backbone.norm(x[:, 0]))

    def _attend(self, layer: nn.Module, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mixer, heads = layer.mixer, self._model.config.num_heads
        q, k, v = (
            project(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
        )
        keys[:, :, -1:], values[:, :, -1:] = k, v
        y = scaled_dot_product_attention(q, keys, values)
        return F.linear(y.transpose(1, 2).flatten(2), mixer.out_proj.weight, mixer.out_proj.bias)
