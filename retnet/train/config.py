"""What a training run is: frozen dataclasses that check themselves. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from math import isfinite
from typing import Any, Literal, get_args

from retnet.config import nearest
from retnet.parallel.config import ParallelConfig

Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["linear", "cosine", "wsd"]

DEFAULT_MINUTES = 3.0

# Above it AdamW moves every weight by more than weights are large: a slip of the pen.
_HIGHEST_LEARNING_RATE = 1.0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate. Apart from the rate the defaults are the paper's, section 3.1.

    Attributes:
        learning_rate: the highest, reached after the warm-up.
        schedule: how it falls afterwards. "linear": to zero; "cosine": to zero along half a wave;
            "wsd": not until the last `decay_share` of the run, then linearly to zero.
        warmup_steps: steps over which the learning rate rises; at most half of the run.
        decay_share: part of the run in which "wsd" falls.
        final_share: part of the highest rate that the last steps still have, instead of zero.
        betas: AdamW's, for its means of gradients and of their squares.
        eps: AdamW's, added to the root of the latter.
        weight_decay: AdamW's, on matrices only: not on embeddings, norms and biases.
        clip: the gradient's largest norm.
    """

    learning_rate: float = 4e-3
    schedule: Schedule = "linear"
    warmup_steps: int = 100
    decay_share: float = 0.2
    final_share: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        _require_count("warmup_steps", self.warmup_steps, 0)
        for name in ("learning_rate", "clip", "eps"):
            _require_positive(name, getattr(self, name))
        _require(
            self.learning_rate <= _HIGHEST_LEARNING_RATE,
            f"learning_rate must be at most {_HIGHEST_LEARNING_RATE:g}, got "
            f"{self.learning_rate!r}; AdamW moves every weight by about that much a step",
        )
        _require(
            _is_number(self.weight_decay) and self.weight_decay >= 0,
            f"weight_decay must be a number >= 0, got {self.weight_decay!r}",
        )
        for name in ("decay_share", "final_share"):
            value = getattr(self, name)
            _require(
                _is_number(value) and 0 <= value <= 1,
                f"{name} must be a number in [0, 1], got {value!r}",
            )
        _require(
            len(self.betas) == 2 and all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas),
            f"betas must be two numbers in [0, 1), got {self.betas!r}",
        )
        _require_choice("schedule", self.schedule, get_args(Schedule))


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run tells besides its losses. The metrics are always kept, as JSON lines.

    Attributes:
        every: steps between two lines of metrics.
        tensorboard: whether to write events for TensorBoard too (extra "tensorboard").
        norms: whether to record the norms of each head's outputs and states with each validation.
        sample: a text to continue after each validation, or None.
        sample_tokens: how long the continuation is.
    """

    every: int = 10
    tensorboard: bool = False
    norms: bool = False
    sample: str | None = None
    sample_tokens: int = 100

    def __post_init__(self) -> None:
        _require_count("every", self.every, 1)
        _require_count("sample_tokens", self.sample_tokens, 1)
        for name in ("tensorboard", "norms"):
            _require_switch(name, getattr(self, name))
        _require(
            self.sample is None or isinstance(self.sample, str),
            f"sample must be a text or None, got {self.sample!r}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run: the text, where it goes, how long and how fast.

    In a run of minutes, many steps count for more than long ones: windows and batches are small by
    default.

    Attributes:
        data: a folder that `retnet prepare` made, a text file, a folder of text, or "stdlib": the
            sources of the running Python's standard library.
        out: folder for the checkpoints, the metrics and the plot; it must not hold a run yet.
        context: tokens in a window.
        batch_size: windows in a step, those of all processes together.
        accumulate: parts that a step's windows are worked through in, one after the other, to save
            memory.
        steps: length of the run; or give minutes.
        minutes: about how long the run may take, the last validation included; 3 where neither is
            given. The number of steps is set from the speed of the first ones.
        carry_state: read the text as batch_size long streams, each window going on from the state
            that the one before left, instead of shuffled windows that begin from nothing.
        horizon: with carry_state, the windows in a step through which gradients flow back; a step
            then has batch_size x horizon windows, in the memory of batch_size.
        seed: of the initial weights, the batches and dropout.
        precision: of the matmuls. "auto": bf16 where a short measurement finds it faster than fp32
            here.
        activation_checkpointing: compute each block again for its backward pass instead of keeping
            what is inside: a third more work, far less memory.
        compile: run the blocks through torch.compile.
        device: "cpu", "cuda", ...; "auto": cuda where there is one.
        threads: CPU threads; None leaves torch's choice.
        validate_every: steps between two validations, each with a checkpoint; None for a quarter of
            the run.
        validation_bytes: text read by those; the last one reads everything held out.
        save_every: steps between two checkpoints; None for those of the validations and one every
            ten minutes.
        keep: checkpoints to keep, the newest; the best model is kept besides.
        optimizer: AdamW and its learning rate.
        parallel: how the processes that torchrun started share the work.
        log: what the run tells besides its losses.
    """

    data: str = "stdlib"
    out: str = "runs/first"
    context: int = 256
    batch_size: int = 4
    accumulate: int = 1
    steps: int | None = None
    minutes: float | None = None
    carry_state: bool = False
    horizon: int = 1
    seed: int = 0
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    device: str = "auto"
    threads: int | None = None
    validate_every: int | None = None
    validation_bytes: int = 65_536
    save_every: int | None = None
    keep: int = 2
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        self._check_numbers()
        _require(self.data != "", "data must name a file, a folder or 'stdlib', got ''")
        _require(self.out != "", "out must name a folder, got ''")
        _require_choice("precision", self.precision, get_args(Precision))
        _require(
            self.steps is None or self.minutes is None,
            f"steps and minutes both set the run's length, got {self.steps} and {self.minutes}; "
            "pass one of them",
        )
        _require(
            self.batch_size % self.accumulate == 0,
            f"accumulate must divide batch_size, got {self.accumulate} and {self.batch_size}",
        )
        _require(
            self.horizon == 1 or self.carry_state,
            f"horizon {self.horizon} needs carry_state: other windows don't follow each other",
        )

    def _check_numbers(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _require_count(name, value, least)
        for name in ("carry_state", "activation_checkpointing", "compile"):
            _require_switch(name, getattr(self, name))
        if self.minutes is not None:
            _require_positive("minutes", self.minutes)

    @property
    def budget_s(self) -> float | None:
        """Seconds the run may take, or None where the number of steps is given."""
        if self.steps is not None:
            return None
        return 60 * (DEFAULT_MINUTES if self.minutes is None else self.minutes)

    @property
    def tokens_per_step(self) -> int:
        """Tokens trained on in one step, by all processes together."""
        return self.batch_size * self.horizon * self.context

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON; those of its parts under their names."""
        values = asdict(self)
        values["optimizer"]["betas"] = list(self.optimizer.betas)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The config of `to_dict`'s fields; ValueError names the nearest to an unknown key."""
        return _from_dict(cls, values)


PARTS = {"optimizer": OptimizerConfig, "parallel": ParallelConfig, "log": LogConfig}

_LEAST = {
    "context": 1,
    "batch_size": 1,
    "accumulate": 1,
    "steps": 1,
    "horizon": 1,
    "seed": 0,
    "threads": 1,
    "validate_every": 1,
    "validation_bytes": 1,
    "save_every": 1,
    "keep": 1,
}
_OPTIONAL = ("steps", "minutes", "threads", "validate_every", "save_every")


def _from_dict(cls: Any, values: Mapping[str, Any]) -> Any:
    names = [each.name for each in fields(cls)]
    for key in values:
        _require(key in names, f"unknown training setting {key!r}{nearest(key, names)}")
    parts = {
        name: _from_dict(part, values[name])
        for name, part in PARTS.items()
        if name in values and not is_dataclass(values[name])
    }
    return cls(**{**values, **parts})


def _require_count(name: str, value: object, least: int) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(is_count, f"{name} must be an integer >= {least}, got {value!r}")


def _require_positive(name: str, value: Any) -> None:
    _require(_is_number(value) and value > 0, f"{name} must be a number > 0, got {value!r}")


def _require_switch(name: str, value: object) -> None:
    _require(isinstance(value, bool), f"{name} must be true or false, got {value!r}")


def _require_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    _require(
        value in allowed,
        f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        + nearest(str(value), allowed),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
