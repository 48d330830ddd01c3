"""How a run is spread over processes: one frozen dataclass. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

from retnet.config import ModelConfig, nearest


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes that `torchrun` starts share the work; docs/parallel.md says what suits.

    The processes that these three leave over are replicas: they hold the same weights and read
    different rows of a batch.

    Attributes:
        shard: processes that each keep a part of every weight, its gradient and AdamW's means, and
            read different rows (FSDP2).
        tensor: processes that share the heads of every layer, and the width of its feed forward.
        sequence: processes that each read a slice of every row's context, and pass states on.
        timeout_s: how long a process waits for the others before it gives up.
    """

    shard: int = 1
    tensor: int = 1
    sequence: int = 1
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            _require(is_count, f"{name} must be an integer >= 1, got {value!r}")
        timeout = self.timeout_s
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        _require(
            is_number and isfinite(timeout) and timeout > 0,
            f"timeout_s must be a number > 0, got {timeout!r}",
        )

    @property
    def group_size(self) -> int:
        """The processes that hold a model together: shard * tensor * sequence."""
        return self.shard * self.tensor * self.sequence

    def replicas(self, num_processes: int) -> int:
        """How many such groups the processes make; ValueError where they don't come out even."""
        asked = " * ".join(f"{name} {getattr(self, name)}" for name in _SIZES)
        _require(
            num_processes % self.group_size == 0,
            f"{asked} = {self.group_size} must divide the number of processes, got "
            f"{num_processes}; start them with torchrun --nproc-per-node {self.group_size}, or "
            "change one of the three",
        )
        return num_processes // self.group_size

    def check(
        self, model: ModelConfig, *, num_processes: int, batch_size: int, context: int
    ) -> None:
        """ValueError where rows, tokens, heads or widths don't divide among the processes.

        batch_size: rows of one pass through the model, of all processes together; context: tokens
        of a row.
        """
        rows = self.replicas(num_processes) * self.shard
        _require(
            batch_size % rows == 0,
            f"batch_size must be a multiple of the {rows} processes that read different rows "
            f"({num_processes} in all, tensor {self.tensor}, sequence {self.sequence}), "
            f"got {batch_size}; change it or the number of processes",
        )
        _require(
            context % self.sequence == 0,
            f"context must be a multiple of sequence {self.sequence}, got {context}; "
            "change one of them",
        )
        if self.tensor > 1 or self.sequence > 1:
            model.require_retention("tensor or sequence above 1")
        for name in ("num_heads", "ffn_size"):
            size = getattr(model, name)
            _require(
                size % self.tensor == 0,
                f"tensor must divide the model's {name} {size}, got {self.tensor}; "
                "change one of them",
            )
        _require(
            self.tensor == 1 or not model.ffn_norm,
            f"tensor must be 1 for a model with ffn_norm, whose norm needs the whole width of the "
            f"feed forward, got {self.tensor}; use shard instead",
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ParallelConfig":
        """The config of `to_dict`'s fields; ValueError names the nearest to an unknown key."""
        names = [field.name for field in fields(cls)]
        for key in values:
            _require(key in names, f"unknown parallel setting {key!r}{nearest(key, names)}")
        return cls(**values)


_SIZES = ("shard", "tensor", "sequence")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
