"""A step of many rows in plain torch, on any device; several tokens of a row are read by the model.

A row's bits do not depend on its neighbours. Four things could break that, and don't:

* A product of few rows is summed in another order than one of many: it is done in groups of as many
  rows, the last made up with zeros, or of any number from where the order is the same (`GROUPS`).
* Elementwise functions compute what is left over at the end of a tensor, or of a thread's share of
  it, with another exponential: they see whole rows, in shares that one thread does (`by_rows`).
* A product of matrices in memory is summed as their alignment has it: each state is aligned.
* A sum of products may be fused or not in such leftovers: what belongs to a state is multiplied and
  added by separate operations.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.config import ModelConfig
from retnet.decoding.reading import Reading
from retnet.decoding.weights import LayerWeights, Matrix, Weights
from retnet.model import RetNet, RetNetState
from retnet.ops.reference import accumulation_dtype
from retnet.position import decay_sum, log_decays, rotary_angles, rotate_real

# Rows of a product on a CPU. MKL, which does fp32 and fp64, chooses its order by their number on
# some processors. oneDNN's bf16 sums differ at 1 row only; found by trying all numbers up to 64.
GROUPS = {torch.float32: 8, torch.float64: 8}
LEAST_ROWS = {torch.bfloat16: 2, torch.float32: 8, torch.float64: 8}
# On a GPU the number of rows chooses the kernel; up to this many cost the same as one.
PADDED_ROWS_ON_GPU = 64

# torch divides an elementwise operation between threads above this many numbers, at any number.
_ONE_THREADS_NUMBERS = 32768
# A product of matrices that begin anywhere in memory is summed as their places have it, so each
# begins at a multiple of so many numbers, 64 bytes and more.
_ALIGNED_NUMBERS = 16
# Its loops take at most this many numbers at a time, and do the rest one by one.
_LOOP_NUMBERS = 64


class TorchKernel:
    """The step of a model's weights in torch's own operations."""

    name = "torch"

    def __init__(self, model: RetNet, weights: Weights) -> None:
        self._model, self._weights = model, weights
        self._config = model.config
        log_decay = log_decays(self._config.decay, self._config.num_heads)
        self._log_decay = log_decay.to(weights.head.weight.device)
        self._states: Tensor | None = None

    def step_(self, reading: Reading, state: RetNetState) -> Tensor:
        """See `Decoder.step_`; nothing is checked here but the tokens."""
        features = [torch.empty(0)] * len(reading.counts)
        parts = reading.tokens.split(reading.counts)
        single = [i for i, count in enumerate(reading.counts) if count == 1]
        if single:
            tokens, rows = torch.cat([parts[i] for i in single]), reading.rows[single]
            for i, row in zip(single, self._read_one_each_(tokens, state, rows), strict=True):
                features[i] = row[None]
        for i, count in enumerate(reading.counts):
            if count > 1:
                features[i] = self._read_several_(parts[i], state, reading.rows[i : i + 1])
        return self._logits(torch.cat(features)[list(reading.wanted)])

    def settle_(self, state: RetNetState, rows: Tensor) -> None:
        """Nothing to do: a state always holds what was read."""

    def _logits(self, features: Tensor) -> Tensor:
        """The scores [M, vocab_size] of features [M, D]."""
        room = padded(features, num_padded(len(features), features))
        logits = product(room, self._weights.head)[: len(features)]
        return logits.to(accumulation_dtype(logits.dtype))

    def _read_several_(self, tokens: Tensor, state: RetNetState, row: Tensor) -> Tensor:
        """The features [T, D] of tokens [T] that are read one after the other in a row [1]."""
        features, after = self._model.features(tokens[None], state.rows(row))
        for layer, read in zip(state.layers, after.layers, strict=True):
            layer.index_copy_(0, row, read)
        state.position.index_copy_(0, row, after.position)
        return features[0]

    def _read_one_each_(self, tokens: Tensor, state: RetNetState, rows: Tensor) -> Tensor:
        """The features [B, D] of tokens [B] that are read in rows [B]."""
        features = self._through_layers_(tokens, state, rows, state.position[rows])
        state.position[rows] += 1
        return features

    def _through_layers_(
        self, tokens: Tensor, state: RetNetState, rows: Tensor, positions: Tensor
    ) -> Tensor:
        """The features [B, D] of tokens [B] at positions [B]; the layers' states read them."""
        num_rows = len(tokens)
        x = self._model.backbone.embed(tokens[:, None])[:, 0]
        x = padded(x, num_padded(num_rows, x))
        if self._model.backbone.embedding_norm is not None:
            x = self._model.backbone.embedding_norm(x)
        place = Place(self._config, self._log_decay, positions, x.dtype)
        for layer, layer_state in zip(self._weights.layers, state.layers, strict=True):
            x = x + self._retain_(layer, layer_state, rows, x, place)
            x = x + self._feed_forward(layer, x)
        features: Tensor = self._weights.norm(x)
        return features[:num_rows]

    def _retain_(
        self, layer: LayerWeights, layer_state: Tensor, rows: Tensor, x: Tensor, place: "Place"
    ) -> Tensor:
        """What a layer's retention adds to x [M, D]; its state of these rows reads their tokens."""
        q, k, v, gate = self._projected(layer, x, len(rows), place)
        out = place.normalised(self._read_(layer_state, rows, q, k, v, place.gamma)).to(x.dtype)
        y = layer.head_norm(out).flatten(1)
        return product(by_rows(F.silu, gate) * padded(y, len(x)), layer.output)

    def _projected(
        self, layer: LayerWeights, x: Tensor, count: int, place: "Place"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k [B, H, K], turned, and v [B, H, V] of the first rows of x [M, D]; the gate of all,
        [M, H V].
        """
        config = self._config
        keys, values = config.num_heads * config.key_size, config.num_heads * config.value_size
        merged = product(layer.mixer_norm(x), layer.projection)
        q, k, v, gate = merged.split([keys, keys, values, values], dim=-1)
        q, k = (y[:count].unflatten(-1, (config.num_heads, -1)) for y in (q, k))
        v = v[:count].unflatten(-1, (config.num_heads, -1))
        if config.score_norm == "paper":
            v = F.pad(v, (0, 1), value=1.0)
        q, k = place.rotated(q, place.query_rotation), place.rotated(k, place.key_rotation)
        return q, k, v, gate

    def _read_(
        self, layer_state: Tensor, rows: Tensor, q: Tensor, k: Tensor, v: Tensor, gamma: Tensor
    ) -> Tensor:
        """Eq. 6 for q, k [B, H, K] and v [B, H, V]: S <- gamma S + k v^T, and q S, [B, H, V]."""
        width = layer_state.shape[-1]
        whole, whole_added = self._room(layer_state, len(rows))
        states, added = whole[..., :width], whole_added[..., :width]
        torch.index_select(layer_state, 0, rows, out=states)
        torch.mul(k[..., :, None], v[..., None, :].to(k.dtype), out=added)
        states.mul_(gamma).add_(added)
        layer_state.index_copy_(0, rows, states)
        return (q[..., None, :] @ whole)[..., 0, :width]

    def _room(self, layer_state: Tensor, count: int) -> Tensor:
        """Room for the states of so many rows, twice: [2, count, H, K, V and some zeros]."""
        # Kept from step to step: what is allocated anew has to be cleared by the system first.
        *sizes, width = layer_state.shape[1:]
        have = self._states
        if have is None or have.shape[1] < count or have.dtype != layer_state.dtype:
            aligned = -(-width // _ALIGNED_NUMBERS) * _ALIGNED_NUMBERS
            have = layer_state.new_zeros(2, count, *sizes, aligned)
            self._states = have
        return have[:, :count]

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """What a layer's feed forward adds to x [M, D]."""
        activation = F.silu if self._config.feed_forward == "swiglu" else F.gelu
        hidden = product(layer.feed_forward_norm(x), layer.up)
        if self._config.feed_forward == "gelu":
            hidden = by_rows(activation, hidden)
        else:
            up, gate = hidden.chunk(2, dim=-1)
            hidden = by_rows(activation, gate) * up
        if layer.inner_norm is not None:
            hidden = layer.inner_norm(hidden)
        return product(hidden, layer.down)


class Place:
    """What all layers need to know of where the rows stand; worked out once a step. log_decay is on
    the device of the positions.

    gamma: [H, 1, 1]. query_rotation, key_rotation: [B, 1, K/2, 2]. score_scale: [B, H, 1] or None.
    """

    def __init__(
        self, config: ModelConfig, log_decay: Tensor, positions: Tensor, dtype: torch.dtype
    ) -> None:
        dtype = accumulation_dtype(dtype)
        self._config, self._dtype = config, dtype
        self.gamma = log_decay.exp().to(dtype)[:, None, None]
        angles = rotary_angles(positions, config.key_size, config.rotary_frequencies)
        turn = [by_rows(function, angles).to(dtype) for function in (torch.cos, torch.sin)]
        self.query_rotation = torch.stack(turn, dim=-1)[:, None]
        self.key_rotation = self.query_rotation * config.key_size**-0.5
        self._score_scale = None
        if config.score_norm != "none":
            scales = by_rows(lambda row: decay_sum(log_decay, row[:, 0]).sqrt(), positions[:, None])
            self._score_scale = scales.to(dtype)[..., None]

    def rotated(self, x: Tensor, rotation: Tensor) -> Tensor:
        """x [B, H, K] turned, in the dtype of the state."""
        return rotate_real(x.to(self._dtype), rotation, self._config.rotary_pairing)

    def normalised(self, out: Tensor) -> Tensor:
        """What was retained over the configured score norm, [B, H, V]; see the layer's."""
        if self._score_scale is None:
            return out
        if self._config.score_norm == "decay":
            return out / self._score_scale
        return out[..., :-1] / torch.maximum(out[..., -1:].abs(), self._score_scale)


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """x [M, K] times a matrix: [M, N]."""
    weight = matrix.weight
    if x.dtype == torch.float64 and x.shape[-1] % 2:
        # Rows of an odd number of these begin at two alignments in turn, summed in two ways.
        x, weight = F.pad(x, (0, 1)), F.pad(weight, (0, 1))
    if x.device.type != "cpu" or len(x) <= GROUPS.get(x.dtype, len(x)):
        return F.linear(x, weight, matrix.bias)
    groups = x.split(GROUPS[x.dtype])
    return torch.cat([F.linear(group, weight, matrix.bias) for group in groups])


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function of x [M, N] by rows whose results don't depend on each other's."""
    if x.device.type != "cpu":
        return function(x)
    width = x.shape[-1]
    count = max(1, _ONE_THREADS_NUMBERS // width) if width % _LOOP_NUMBERS == 0 else 1
    if len(x) <= count:
        return function(x)
    return torch.cat([function(part) for part in x.split(count)])


def num_padded(num_rows: int, x: Tensor) -> int:
    """The rows that a product of so many rows like x [M, D] has."""
    if x.device.type != "cpu":
        return -(-num_rows // PADDED_ROWS_ON_GPU) * PADDED_ROWS_ON_GPU
    multiple = GROUPS.get(x.dtype, 1)
    return max(LEAST_ROWS[x.dtype], -(-num_rows // multiple) * multiple)


def padded(x: Tensor, num_rows: int) -> Tensor:
    """x [M, N] with rows of zeros after it, [num_rows, N]."""
    return x if len(x) == num_rows else F.pad(x, (0, 0, 0, num_rows - len(x)))
