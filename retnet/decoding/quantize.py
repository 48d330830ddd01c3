"""Weights in a byte each: int8 values, and a scale for each output of a matrix.

Only weights are rounded to bytes. Prompts are read with the same values, which the model's own
parameters become, in their dtype, so that a prompt and a step are one function.
"""

from dataclasses import replace

import torch
from torch import Tensor

from retnet.decoding.weights import Integers, LayerWeights, Matrix, Weights

LARGEST = 127


@torch.no_grad()
def quantize_(weights: Weights) -> Weights:
    """The weights with every matrix rounded to int8; the model's parameters become what is left.

    An embedding that is also the output head is rounded with it.
    """
    layers = tuple(map(_quantize_layer_, weights.layers))
    return Weights(layers, weights.norm, _quantize_matrix_(weights.head))


def _quantize_layer_(layer: LayerWeights) -> LayerWeights:
    return replace(
        layer,
        projection=_quantize_matrix_(layer.projection),
        output=_quantize_matrix_(layer.output),
        up=_quantize_matrix_(layer.up),
        down=_quantize_matrix_(layer.down),
    )


def _quantize_matrix_(matrix: Matrix) -> Matrix:
    integers = rounded(matrix.weight)
    matrix.weight.copy_(integers.values * integers.scales[:, None])
    return replace(matrix, integers=integers)


def rounded(weight: Tensor) -> Integers:
    """A matrix [N, K] as int8, the largest of each row 127 or -127."""
    exact = weight.float()
    # A row of zeros may have any scale.
    scales = (exact.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return Integers((exact / scales[:, None]).round().to(torch.int8), scales)
