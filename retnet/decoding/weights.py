"""A model's weights as a decoder reads them: what is multiplied by the same numbers is one matrix.

The model's own parameters become views of these matrices, so no weight is in memory twice, and the
model goes on working as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retnet.layers import RetNetBlock
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
    layers = tuple(_merge_layer_(layer) for layer in model.backbone.layers)
    return Weights(layers, model.backbone.norm, Matrix(model.head_weight.detach()))


def _merge_layer_(layer: nn.Module) -> LayerWeights:
    assert isinstance(layer, RetNetBlock)
    mixer, feed_forward = layer.mixer, layer.feed_forward
    gates = [] if feed_forward.gate_proj is None else [feed_forward.gate_proj]
    return LayerWeights(
        mixer_norm=layer.mixer_norm,
        projection=_merge_linears_([mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.g_proj]),
        head_norm=mixer.head_norm,
        output=_merge_linears_([mixer.out_proj]),
        feed_forward_norm=layer.feed_forward_norm,
        up=_merge_linears_([feed_forward.up_proj, *gates]),
        inner_norm=feed_forward.inner_norm,
        down=_merge_linears_([feed_forward.down_proj]),
    )


def _merge_linears_(linears: Sequence[nn.Linear]) -> Matrix:
    weight = _merge_tensors_([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return Matrix(weight, _merge_tensors_(biases) if biases else None)


def _merge_tensors_(parameters: Sequence[Tensor]) -> Tensor:
    """One tensor of the rows of all; each parameter becomes a view of its rows."""
    parts = [parameter.detach() for parameter in parameters]
    sizes = [len(part) for part in parts]
    if _follow_each_other(parts):
        return parts[0].as_strided((sum(sizes), *parts[0].shape[1:]), parts[0].stride())
    merged = torch.cat(parts)
    for parameter, rows in zip(parameters, merged.split(sizes), strict=True):
        parameter.data = rows
    return merged


def _follow_each_other(parts: Sequence[Tensor]) -> bool:
    """Whether the parts lie in memory as one tensor would: they were merged before."""
    storage, place = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        here = (part.untyped_storage().data_ptr(), part.storage_offset())
        if here != (storage, place) or not part.is_contiguous():
            return False
        place += part.numel()
    return True
