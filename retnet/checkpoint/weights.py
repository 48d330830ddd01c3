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


def check_weights(
    weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], whose: str, fields: str
) -> None:
    """CheckpointError unless tensors are the weights of these names and shapes, all finite.

    whose, fields: what messages call them and what their names and shapes are said by: "the weights
    of DIR" and "config.json".
    """
    for fault, problems in (
        (f"{whose} and {fields} disagree", _other_tensors(weights, shapes)),
        (f"{whose} can't be used", _other_values(weights)),
    ):
        if problems:
            raise CheckpointError(f"{fault} ({len(problems)}): {'; '.join(problems[:3])}")


def _other_tensors(weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Where tensors have not these names and shapes, in sentences, sorted."""
    problems = [f"{name} is missing" for name in shapes.keys() - weights.keys()]
    problems += [f"{name} is not of this model" for name in weights.keys() - shapes.keys()]
    for name in shapes.keys() & weights.keys():
        found, expected = list(weights[name].shape), list(shapes[name])
        if found != expected:
            problems.append(f"{name} is {found}, expected {expected}")
    return sorted(problems)


def _other_values(weights: Mapping[str, Tensor]) -> list[str]:
    """Where tensors hold what no weights do, in sentences, sorted."""
    problems = []
    for name, tensor in sorted(weights.items()):
        if tensor.dtype not in _DTYPES:
            problems.append(f"{name} is {tensor.dtype}, expected a float dtype")
        elif not all_finite(tensor):
            problems.append(f"{name} holds NaN or infinity")
    return problems


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
