"""What a benchmark reports, and the quick figures of `retnet bench`.

The scripts under `benchmarks/` report in the same way: rows, turned into tables for people and one
line of JSON for programs. How things are measured: `retnet.measure`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retnet.config import ModelConfig
from retnet.generation import prefill, step
from retnet.measure import Timing, dtype_name, machine_facts, measure
from retnet.model import RetNet, RetNetState
from retnet.ops import retention_chunkwise, retention_parallel, retention_recurrent

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """A figure in short, with its goal if it has one; `value` is None if it was not measured."""

    name: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the value reaches the goal; None without a value or a goal."""
        if self.value is None or not self.goal:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def goal(self) -> str:
        """The goal in words, "" for none."""
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {bound:.3g}" for sign, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Report:
    """One run of a benchmark: everything that was measured, and on what."""

    name: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: Sequence[Row]
    ratios: Sequence[Ratio] = ()
    notes: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ratios = [{**asdict(ratio), "met": ratio.met} for ratio in self.ratios]
        return {**{key: getattr(self, key) for key in self.__dataclass_fields__}, "ratios": ratios}

    def json_line(self) -> str:
        """The whole report in one line."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def save(self, directory: Path, name: str) -> Path:
        """Write `directory/name.json`, which must not exist yet: a result is never overwritten."""
        path = free_result_path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return path


def quotient(numerator: float | None, denominator: float | None) -> float | None:
    """Their ratio; None where a side was not measured."""
    return None if numerator is None or denominator is None else numerator / denominator


def free_result_path(directory: Path, name: str) -> Path:
    """`directory/name.json`; ValueError if the name is no plain file name or is taken."""
    path = directory / f"{name}.json"
    if not name or Path(name).name != name:
        raise ValueError(f"the name of a result must be a plain file name, got {name!r}")
    if path.exists():
        raise ValueError(f"{path} exists already; choose another name, or move it away")
    return path


def table(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> "Table":
    """A rich table of the rows. columns: key of a row -> heading. None shows as a dash."""
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for key, heading in columns.items():
        is_text = any(isinstance(row.get(key), str) for row in rows)
        drawn.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(_cell(row.get(key)) for key in columns))
    return drawn


def ratio_table(ratios: Sequence[Ratio]) -> "Table":
    """The figures, and whether their goals are met."""
    words = {True: "yes", False: "no", None: ""}
    rows = [{"name": r.name, "value": r.value, "goal": r.goal, "met": words[r.met]} for r in ratios]
    return table(
        "In short", rows, {"name": "ratio", "value": "measured", "goal": "goal", "met": "met"}
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- the quick figures of `retnet bench`

FORM_COLUMNS = {
    "form": "form",
    "pass": "pass",
    "median_ms": "ms",
    "min_ms": "min",
    "max_ms": "max",
    "ns_per_token": "ns/token",
}
MODEL_COLUMNS = {
    "what": "",
    "ms_per_token": "ms/token",
    "tokens_per_s": "tokens/s",
    "state_bytes": "state bytes",
}


def form_report(
    *,
    dtype: torch.dtype = torch.float32,
    num_tokens: int = 1024,
    rounds: int = 5,
    allocator: str = "default",
) -> Report:
    """The three forms on one sequence of 8 heads, K = 64, V = 128, as they are used: the recurrent
    one only forward.
    """
    q, k = (torch.randn(1, num_tokens, 8, 64).to(dtype).requires_grad_() for _ in range(2))
    v = torch.randn(1, num_tokens, 8, 128).to(dtype).requires_grad_()
    log_decay = torch.log1p(-(2.0 ** -torch.arange(5, 13)))

    def forward(form: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        with torch.no_grad():
            return form(q, k, v, log_decay)[0]

    def both(form: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        out = form(q, k, v, log_decay)[0]
        return torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    forms = {
        "parallel": retention_parallel,
        "recurrent": retention_recurrent,
        "chunkwise": retention_chunkwise,
    }
    calls: dict[tuple[str, str], Callable[[], object]]
    calls = {(name, "forward"): partial(forward, form) for name, form in forms.items()}
    calls |= {
        (name, "forward+backward"): partial(both, forms[name]) for name in ("parallel", "chunkwise")
    }
    timings = measure({" ".join(key): call for key, call in calls.items()}, rounds)
    rows = [
        {
            "form": name,
            "pass": kind,
            **times_ms(timing),
            "ns_per_token": timing.median_s / num_tokens * 1e9,
        }
        for (name, kind), timing in zip(calls, timings.values(), strict=True)
    ]
    settings = {"dtype": dtype_name(dtype), "num_tokens": num_tokens, "rounds": rounds}
    return Report("forms", machine_facts(allocator), settings, rows)


def model_report(
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    num_tokens: int = 1024,
    steps: int = 16,
    rounds: int = 5,
    allocator: str = "default",
) -> Report:
    """A model with random weights at batch 1: reading `num_tokens` at once, writing one by one."""
    model = RetNet(config).to(dtype).eval()
    tokens = torch.randint(config.vocab_size, (1, num_tokens))

    def read() -> RetNetState:
        with torch.inference_mode():
            return prefill(model, tokens)[1]

    state = read()

    def write() -> None:
        with torch.inference_mode():
            token, now = tokens[:, -1], state
            for _ in range(steps):
                logits, now = step(model, token, now)
                token = logits.argmax(dim=-1)

    timings = measure({"prefill": read, "decode": write}, rounds)
    rows = [
        {
            "what": what,
            "ms_per_token": timings[what].median_s / count * 1e3,
            "tokens_per_s": count / timings[what].median_s,
            "state_bytes": state.num_bytes,
        }
        for what, count in (("prefill", num_tokens), ("decode", steps))
    ]
    settings = {
        "model": config.to_dict(),
        "dtype": dtype_name(dtype),
        "num_tokens": num_tokens,
        "steps": steps,
        "rounds": rounds,
    }
    return Report("model", machine_facts(allocator), settings, rows)


def times_ms(timing: Timing) -> Row:
    """The median, least and greatest time in milliseconds, as columns of a row."""
    return {
        "median_ms": timing.median_s * 1e3,
        "min_ms": timing.min_s * 1e3,
        "max_ms": timing.max_s * 1e3,
    }
