"""A step of many rows on a GPU: retention, the heads' norm and the gate in one kernel of ours, and
on CUDA the whole step captured once and repeated, for a step of many launches waits for these.

A captured step reads its tokens and rows from memory of its own. It has places for as many rows as
products are padded to; those that are not wanted have the row -1, which the kernel leaves alone.

Where states are deferred, a step reads them and does not write them: the keys and values of the
last tokens lie beside them, half the bytes. `settle_` takes these into the states.
"""

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.decoding.torch_kernel import (
    PADDED_ROWS_ON_GPU,
    Place,
    TorchKernel,
    padded,
    product,
)
from retnet.decoding.weights import LayerWeights, Weights
from retnet.model import RetNet, RetNetState
from retnet.ops.triton.decode import DeferredStates, Finish, step_

# Tokens whose keys and values lie beside a state at most.
RING = 32


class TritonKernel(TorchKernel):
    """The step of a model's weights by our kernels.

    defers: whether states are written once in `RING` tokens, or by `settle_`.
    """

    name = "triton"

    def __init__(self, model: RetNet, weights: Weights, *, defers: bool) -> None:
        super().__init__(model, weights)
        self._log2_decay = (self._log_decay / log(2)).float()
        self._defers = defers
        self._state: RetNetState | None = None
        self._graphs: dict[int, _Graph] = {}
        self._rings: _Rings | None = None

    def settle_(self, state: RetNetState, rows: Tensor) -> None:
        """Make a state hold all that rows [B] have read."""
        if state is self._state and self._rings is not None:
            self._rings.settle_(self._log2_decay, rows)

    def _read_several_(self, tokens: Tensor, state: RetNetState, row: Tensor) -> Tensor:
        self.settle_(state, row)
        return super()._read_several_(tokens, state, row)

    def _read_one_each_(self, tokens: Tensor, state: RetNetState, rows: Tensor) -> Tensor:
        self._attend_to_(state)
        if self._rings is not None:
            self._rings.make_room_(self._log2_decay)
        if tokens.device.type != "cuda":
            return self.read_(tokens, state, rows)
        room = -(-len(tokens) // PADDED_ROWS_ON_GPU) * PADDED_ROWS_ON_GPU
        if room not in self._graphs:
            self._graphs[room] = _Graph(self, state, room)
        return self._graphs[room].replay(tokens, rows)

    def _attend_to_(self, state: RetNetState) -> None:
        """From now on this state: what was captured, or lies aside, belongs to another."""
        if state is self._state:
            return
        if self._state is not None:
            everyone = torch.arange(len(self._state.position), device=state.position.device)
            self.settle_(self._state, everyone)
        self._state, self._graphs = state, {}
        self._rings = _Rings(state, self._weights.head.weight.dtype) if self._defers else None

    def read_(self, tokens: Tensor, state: RetNetState, rows: Tensor) -> Tensor:
        """The features [B, D] of tokens [B] that are read in rows [B], but for rows below 0."""
        there = rows >= 0
        real = rows.clamp(min=0)
        features = self._through_layers_(tokens, state, rows, state.position[real])
        state.position.index_add_(0, real, there.to(state.position.dtype))
        if self._rings is not None:
            self._rings.layers[0].count_(rows, 1)
        return features

    def _retain_(
        self, layer: LayerWeights, layer_state: Tensor, rows: Tensor, x: Tensor, place: Place
    ) -> Tensor:
        config, count = self._config, len(rows)
        q, k, v, gate = self._projected(layer, x, count, place)
        q, k, v = (y.contiguous() for y in (q, k, v))
        gates = gate[:count].unflatten(1, (config.num_heads, -1)).contiguous()
        finish = None
        if config.score_norm == "none" and not config.head_norm_affine:
            assert config.head_norm != "none"
            finish = Finish(config.head_norm, gates, config.head_norm_eps)
        if self._rings is None:
            y = step_(q, k, v, self._log2_decay, layer_state, rows, finish)
        else:
            y = self._rings.of(layer_state).step_(q, k, v, self._log2_decay, rows, finish)
        if finish is None:
            y = layer.head_norm(place.normalised(y).to(x.dtype)) * F.silu(gates)
        return product(padded(y.flatten(1), len(x)), layer.output)


class _Rings:
    """What all layers keep beside a state; they count together.

    layers: by layer.
    """

    def __init__(self, state: RetNetState, dtype: torch.dtype) -> None:
        counts = torch.zeros_like(state.position, dtype=torch.int32)
        self.layers = [DeferredStates.of(layer, RING, dtype, counts) for layer in state.layers]
        self._of = {layer.states.data_ptr(): layer for layer in self.layers}
        self._everyone = torch.arange(len(counts), device=counts.device)
        self._num_steps = 0  # since all were settled: none has counted further

    def of(self, layer_state: Tensor) -> DeferredStates:
        """That of a layer's state."""
        return self._of[layer_state.data_ptr()]

    def make_room_(self, log2_decay: Tensor) -> None:
        """For a token in every row."""
        if self._num_steps == RING:
            self.settle_(log2_decay, self._everyone)
            self._num_steps = 0
        self._num_steps += 1

    def settle_(self, log2_decay: Tensor, rows: Tensor) -> None:
        """Take what lies beside the states of rows [B] into them."""
        for layer in self.layers:
            layer.flush_(log2_decay, rows)
        self.layers[0].empty_(rows)


class _Graph:
    """A step of up to so many rows of a state, captured."""

    def __init__(self, kernel: TritonKernel, state: RetNetState, room: int) -> None:
        device = state.position.device
        self._tokens = torch.zeros(room, dtype=torch.int64, device=device)
        self._rows = torch.full((room,), -1, dtype=torch.int64, device=device)

        def step() -> Tensor:
            return kernel.read_(self._tokens, state, self._rows)

        # Compiles the kernels and makes what libraries make when they are first used; no row reads.
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(2):
                step()
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._features = step()

    def replay(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """The features [B, D] of tokens [B], which rows [B] read."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._rows.fill_(-1)
        self._rows[:count] = rows
        self._graph.replay()
        return self._features[:count].clone()
