"""Weights in a byte each: int8 values, and a scale for each output of a matrix.

Only weights are rounded to bytes. Prompts are read with the same values, which the model's own
parameters become, in their dtype, so that a prompt and a step are one function.
"""

from dataclasses import replace

import torch
from torch import Tensor

from retnet.decoding.large_pages import LargePages
from retnet.decoding.weights import Integers, LayerWeights, Matrix, Weights

LARGEST = 127


@torch.no_grad()
def quantize_(weights: Weights) -> Weights:
    """The weights with every matrix rounded to int8; the model's parameters become what is left.

    An embedding that is also the output head is rounded with it.
    """
    pages = LargePages()
    layers = tuple(_quantize_layer_(layer, pages) for layer in weights.layers)
    return Weights(layers, weights.norm, _quantize_matrix_(weights.head, pages))


def _quantize_layer_(layer: LayerWeights, pages: LargePages) -> LayerWeights:
    return replace(
        layer,
        projection=_quantize_matrix_(layer.projection, pages),
        output=_quantize_matrix_(layer.output, pages),
        up=_quantize_matrix_(layer.up, pages),
        down=_quantize_matrix_(layer.down, pages),
    )


def _quantize_matrix_(matrix: Matrix, pages: LargePages) -> Matrix:
    integers = rounded(matrix.weight)
    matrix.weight.copy_(integers.values * integers.scales[:, None])
    if integers.values.device.type == "cpu":
        integers = replace(integers, values=pages.copy(integers.values))
    return replace(matrix, integers=integers)


def rounded(weight: Tensor) -> Integers:
    """A matrix [N, K] as int8, the largest of each row 127 or -127."""
    exact = weight.float()
    # A row of zeros may have any scale.
    scales = (exact.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return Integers((exact / scales[:, None]).round().to(torch.int8), scales)
