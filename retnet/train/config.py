"""What a training run is: one frozen dataclass that checks itself. Imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Literal, get_args

from retnet.config import nearest

Precision = Literal["auto", "fp32", "bf16"]

DEFAULT_MINUTES = 3.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run: the text, where it goes, how long and how fast.

    The defaults of the optimiser are the paper's (section 3.1) where it fits a small model: AdamW
    with betas 0.9 and 0.98, weight decay 0.05, linear decay, gradients clipped at norm 2. Windows
    and batches are small by default: in a run of minutes, many steps count for more than long ones.

    Attributes:
        data: a text file, a folder of text, or "stdlib": the sources of the running Python's
            standard library.
        out: folder for the checkpoint, the metrics and the plot; it must not hold a run yet.
        context: tokens in a window.
        batch_size: windows in a step.
        steps: length of the run; or give minutes.
        minutes: about how long the run may take, the last validation included; 3 where neither is
            given. The number of steps is set from the speed of the first ones.
        learning_rate: the highest, reached after the warm-up.
        warmup_steps: steps over which the learning rate rises; at most half of the run.
        betas: AdamW's.
        weight_decay: AdamW's, on matrices only: not on embeddings, norms and biases.
        clip: the gradient's largest norm.
        seed: of the initial weights, the batches and dropout.
        precision: of the matmuls. "auto": bf16 where a short measurement finds it faster than fp32
            here.
        device: "cpu", "cuda", ...; "auto": cuda where there is one.
        threads: CPU threads; None leaves torch's choice.
        log_every: steps between two lines of metrics.
        validate_every: steps between two validations, each followed by a checkpoint; None for a
            quarter of the run.
        validation_bytes: text read by those; the last one reads everything held out.
    """

    data: str = "stdlib"
    out: str = "runs/first"
    context: int = 256
    batch_size: int = 4
    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 2.0
    seed: int = 0
    precision: Precision = "auto"
    device: str = "auto"
    threads: int | None = None
    log_every: int = 10
    validate_every: int | None = None
    validation_bytes: int = 65_536

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        self._check_counts()
        self._check_numbers()
        _require(self.data != "", "data must name a file, a folder or 'stdlib', got ''")
        _require(self.out != "", "out must name a folder, got ''")
        allowed = get_args(Precision)
        _require(
            self.precision in allowed,
            f"precision must be one of {', '.join(map(repr, allowed))}, got {self.precision!r}"
            + nearest(str(self.precision), allowed),
        )
        _require(
            self.steps is None or self.minutes is None,
            f"steps and minutes both set the run's length, got {self.steps} and {self.minutes}; "
            "pass one of them",
        )

    def _check_counts(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
            _require(is_count, f"{name} must be an integer >= {least}, got {value!r}")

    def _check_numbers(self) -> None:
        for name in ("learning_rate", "clip", "minutes"):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            _require(_is_number(value) and value > 0, f"{name} must be a number > 0, got {value!r}")
        decay = self.weight_decay
        _require(
            _is_number(decay) and decay >= 0, f"weight_decay must be a number >= 0, got {decay!r}"
        )
        _require(
            len(self.betas) == 2 and all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas),
            f"betas must be two numbers in [0, 1), got {self.betas!r}",
        )

    @property
    def budget_s(self) -> float | None:
        """Seconds the run may take, or None where the number of steps is given."""
        if self.steps is not None:
            return None
        return 60 * (DEFAULT_MINUTES if self.minutes is None else self.minutes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The config of `to_dict`'s fields; ValueError names the nearest to an unknown key."""
        names = [field.name for field in fields(cls)]
        for key in values:
            _require(key in names, f"unknown training setting {key!r}{nearest(key, names)}")
        return cls(**values)


_LEAST = {
    "context": 1,
    "batch_size": 1,
    "steps": 1,
    "warmup_steps": 0,
    "seed": 0,
    "threads": 1,
    "log_every": 1,
    "validate_every": 1,
    "validation_bytes": 1,
}
_OPTIONAL = ("steps", "minutes", "threads", "validate_every")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
