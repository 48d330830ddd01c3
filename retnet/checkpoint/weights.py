"""Tensors that have to be those of a model: by name, shape, kind and value."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retnet.checkpoint.files import CheckpointError, all_finite
from retnet.config import ModelConfig, RotaryPairing
from retnet.model import RetNet

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's tensors; nothing is allocated."""
    with torch.device("meta"):
        model = RetNet(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def weight_problems(
    weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> list[str]:
    """What keeps tensors from being the weights of these names and shapes, in sentences, sorted."""
    problems = [f"{name} is missing" for name in shapes.keys() - weights.keys()]
    problems += [f"{name} is not of this model" for name in weights.keys() - shapes.keys()]
    for name in shapes.keys() & weights.keys():
        tensor, shape = weights[name], list(shapes[name])
        if list(tensor.shape) != shape:
            problems.append(f"{name} is {list(tensor.shape)}, expected {shape}")
        elif tensor.dtype not in _DTYPES:
            problems.append(f"{name} is {tensor.dtype}, expected a float dtype")
        elif not all_finite(tensor):
            problems.append(f"{name} holds NaN or infinity")
    return sorted(problems)


def check_weights(
    weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: str
) -> None:
    """CheckpointError unless tensors are the weights of these names and shapes, all finite."""
    problems = weight_problems(weights, shapes)
    if problems:
        raise CheckpointError(f"{where} ({len(problems)}): {'; '.join(problems[:3])}")


def build_model(config: ModelConfig, weights: Mapping[str, Tensor]) -> RetNet:
    """The model of checked weights, in evaluation mode. They become its own; nothing is copied."""
    with torch.device("meta"):
        model = RetNet(config)
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()


def with_pairing(
    weights: Mapping[str, Tensor], config: ModelConfig, pairing: RotaryPairing
) -> dict[str, Tensor]:
    """A model's weights as if its rotary_pairing were this one: rows of queries and keys move.

    Pairs are (0, 1), (2, 3), ... or (0, K/2), (1, K/2 + 1), ... of each head's K rows.
    """
    if pairing == config.rotary_pairing:
        return dict(weights)
    parts = (-1, 2) if pairing == "halves" else (2, -1)
    turned = dict(weights)
    for name, tensor in weights.items():
        if ".mixer.q_proj." in name or ".mixer.k_proj." in name:
            rows = tensor.unflatten(0, (config.num_heads, *parts))
            turned[name] = rows.transpose(1, 2).flatten(0, 2)
    return turned
