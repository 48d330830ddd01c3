"""A model's weights as a decoder reads them: what is multiplied by the same numbers is one matrix.

The model's own parameters become views of these matrices, so no weight is in memory twice, and the
model goes on working as before. On a CPU the matrices lie on large pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retnet.decoding.large_pages import LargePages, are_large
from retnet.layers import MultiScaleRetention, RetNetBlock
from retnet.model import RetNet


@dataclass(frozen=True)
class Integers:
    """A matrix as values [N, K] int8, each row's times its own of scales [N] fp32."""

    values: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Matrix:
    """weight [N, K] and bias [N] or None: x [M, K] -> x weight^T + bias, [M, N].

    integers: the same weight in a byte each, where it has been rounded to that.
    """

    weight: Tensor
    bias: Tensor | None = None
    integers: Integers | None = None


@dataclass(frozen=True)
class LayerWeights:
    """A block.

    projection: [2 H K + 2 H V, D], the rows of q, k, v and the gate.
    up: [F, D], or [2 F, D] with the rows of the feed forward's gate after them.
    """

    mixer_norm: nn.Module
    projection: Matrix
    head_norm: nn.Module
    output: Matrix
    feed_forward_norm: nn.Module
    up: Matrix
    inner_norm: nn.Module | None
    down: Matrix


@dataclass(frozen=True)
class Weights:
    """All of a model. The embedding and the norm after it are used as the model has them."""

    layers: tuple[LayerWeights, ...]
    norm: nn.Module
    head: Matrix


def merge_(model: RetNet) -> Weights:
    """The weights of a model, whose parameters become views of the merged matrices."""
    merger = _Merger()
    layers = tuple(merger.layer_(layer) for layer in model.backbone.layers)
    return Weights(layers, model.backbone.norm, Matrix(merger.tensors_([model.head_weight])))


class _Merger:
    """Merges the matrices of one model."""

    def __init__(self) -> None:
        self._pages = LargePages()

    def layer_(self, layer: nn.Module) -> LayerWeights:
        """Those of a block."""
        assert isinstance(layer, RetNetBlock) and isinstance(layer.mixer, MultiScaleRetention)
        mixer, feed_forward = layer.mixer, layer.feed_forward
        assert mixer.g_proj is not None
        gates = [] if feed_forward.gate_proj is None else [feed_forward.gate_proj]
        return LayerWeights(
            mixer_norm=layer.mixer_norm,
            projection=self._linears_([mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.g_proj]),
            head_norm=mixer.head_norm,
            output=self._linears_([mixer.out_proj]),
            feed_forward_norm=layer.feed_forward_norm,
            up=self._linears_([feed_forward.up_proj, *gates]),
            inner_norm=feed_forward.inner_norm,
            down=self._linears_([feed_forward.down_proj]),
        )

    def _linears_(self, linears: Sequence[nn.Linear]) -> Matrix:
        weight = self.tensors_([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        return Matrix(weight, self.tensors_(biases) if biases else None)

    def tensors_(self, parameters: Sequence[Tensor]) -> Tensor:
        """One tensor of the rows of all; each parameter becomes a view of its rows."""
        parts = [parameter.detach() for parameter in parameters]
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        if _were_merged(parts):
            return parts[0].as_strided(shape, parts[0].stride())
        if parts[0].device.type == "cpu":
            merged = torch.cat(parts, out=self._pages.zeros(shape, parts[0].dtype))
        else:
            merged = torch.cat(parts)
        for parameter, rows in zip(parameters, merged.split([*map(len, parts)]), strict=True):
            parameter.data = rows
        return merged


def _were_merged(parts: Sequence[Tensor]) -> bool:
    """Whether the parts lie in memory as one tensor would, and on a CPU on large pages."""
    storage, place = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        here = (part.untyped_storage().data_ptr(), part.storage_offset())
        if here != (storage, place) or not part.is_contiguous():
            return False
        place += part.numel()
    return parts[0].device.type != "cpu" or are_large(parts[0])
