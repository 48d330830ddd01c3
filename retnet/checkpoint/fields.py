"""Fields of other projects' configurations: read as what they have to be, or refused by name."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from torch import Tensor

from retnet.checkpoint.files import CheckpointError
from retnet.config import ModelConfig


def size(fields: Mapping[str, Any], name: str) -> int:
    """A count that must be there."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"the field {name!r} must be a positive integer, got {value!r}")
    return value


def number(fields: Mapping[str, Any], name: str, default: float) -> float:
    """A number >= 0, or the default where there is none."""
    value = fields.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise CheckpointError(f"the field {name!r} must be a number >= 0, got {value!r}")
    return float(value)


def flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false, or the default where there is neither."""
    value = fields.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise CheckpointError(f"the field {name!r} must be true or false, got {value!r}")
    return value


def refuse_unless(fields: Mapping[str, Any], supported: Mapping[str, Any], project: str) -> None:
    """CheckpointError for a setting that would make it another function.

    supported: field -> the only value that is; a field without a value has it.
    """
    for name, only in supported.items():
        if fields.get(name) is not None and fields[name] != only:
            raise CheckpointError(
                f"{project} models with {name}={fields[name]!r} can't be converted exactly; "
                f"only {name}={only!r} can"
            )


def vocabulary(fields: Mapping[str, Any], weights: Mapping[str, Tensor], embedding: str) -> int:
    """The rows of the embedding of this name, which the field vocab_size may not contradict."""
    matrix = weights.get(embedding)
    if matrix is None or matrix.dim() != 2:
        raise CheckpointError(f"{embedding} is missing, or no matrix")
    given = fields.get("vocab_size")
    if isinstance(given, int) and given > 0 and given != len(matrix):
        raise CheckpointError(
            f"the field 'vocab_size' is {given} and the embedding has {len(matrix)} rows; "
            "pass the configuration that belongs to these weights"
        )
    return len(matrix)


def require_settings(
    config: ModelConfig, supported: Mapping[str, Sequence[Any]], project: str
) -> None:
    """CheckpointError for all settings of ours that a project doesn't have; it has one epsilon."""
    problems = [
        f"{name}={getattr(config, name)!r}, only {' or '.join(map(repr, choices))}"
        for name, choices in supported.items()
        if getattr(config, name) not in choices
    ]
    if config.head_norm_eps != config.norm_eps:
        problems.append(
            f"head_norm_eps unlike norm_eps, got {config.head_norm_eps} and {config.norm_eps}"
        )
    if problems:
        raise CheckpointError(f"{project} can't express {'; nor '.join(problems)}")
