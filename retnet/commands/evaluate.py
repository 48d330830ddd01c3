"""`retnet eval`."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from jsonargparse import ArgumentParser

from retnet import __version__
from retnet.commands.flags import (
    Command,
    UsageError,
    Values,
    add_flag,
    attribute_texts,
    naming_flags,
)
from retnet.eval.config import EvalConfig
from retnet.train.config import TrainConfig

if TYPE_CHECKING:
    from rich.table import Table

    from retnet.eval.harness import Score

_FIELDS = tuple(field.name for field in fields(EvalConfig))
_SPELLINGS = {"batch_size": ("--batch_size", "--batch-size")}
_METAVARS = {"tasks": "NAME,...", "task_data": "DIR"}
_PACKAGES = ("lm_eval", "transformers", "torch")


def _add_flags(parser: ArgumentParser) -> None:
    default = TrainConfig.out
    add_flag(parser, "model", str, default, "folder of a run or of another checkpoint", "DIR")
    kinds, texts = get_type_hints(EvalConfig), attribute_texts(EvalConfig)
    for field in fields(EvalConfig):
        text = texts[field.name].removesuffix(".").replace("None", "null")
        shown = "" if field.default is None else f" (default: {field.default})"
        parser.add_argument(
            *_SPELLINGS.get(field.name, (f"--{field.name}",)),
            type=kinds[field.name],
            default=field.default,
            help=text + shown,
            metavar=_METAVARS.get(field.name, "N"),
        )
    add_flag(parser, "device", str, "auto", "cpu, cuda, ...; auto: cuda where there is one")
    add_flag(parser, "dtype", Literal["fp32", "bf16"], "fp32", "of weights and activations")
    add_flag(parser, "threads", int | None, None, "CPU threads; by default torch's choice")
    add_flag(parser, "out", str | None, None, "file for the figures, as JSON", "FILE")


def _run(values: Values) -> int:
    if values["threads"] is not None and values["threads"] < 1:
        raise UsageError(f"--threads must be at least 1, got {values['threads']}")
    with naming_flags({name: f"--{name}" for name in (*_FIELDS, "device")}):
        config = EvalConfig(**{name: values[name] for name in _FIELDS})
        out = _writable(values["out"])
        start = time.perf_counter()
        scores = _evaluate(values, config)
    seconds = time.perf_counter() - start
    if out is not None:
        out.write_text(_report(values, scores, seconds), encoding="utf-8")
    _show(scores, seconds)
    return 0


def _evaluate(values: Values, config: EvalConfig) -> "list[Score]":
    if not Path(values["model"]).is_dir():
        raise UsageError(
            f"--model {values['model']!r} is not a folder; train a model with `retnet train`, or "
            "pass the folder of one"
        )
    if find_spec("lm_eval") is None:
        raise UsageError("eval needs EleutherAI's lm_eval: pip install 'retnet[eval]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import retnet.hf  # noqa: F401, it makes our models known to the two
    from retnet.eval.harness import evaluate
    from retnet.train.environment import find_device, threads

    device = find_device(values["device"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[values["dtype"]]
    model: Any = AutoModelForCausalLM.from_pretrained(values["model"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(values["model"])
    with threads(values["threads"]):
        return evaluate(model.to(device), tokenizer, config)


def _writable(out: str | None) -> Path | None:
    """The path of --out, if it was passed; UsageError now, not after an hour, for a wrong one."""
    if out is None:
        return None
    path = Path(out)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--out {out!r} must be a file in a folder that exists")
    return path


def _show(scores: "Sequence[Score]", seconds: float) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table(scores))
    console.print(f"{seconds:,.0f} s, lm_eval {version('lm_eval')}")


def _table(scores: "Sequence[Score]") -> "Table":
    from rich.table import Table

    table = Table()
    # Names may go over lines, for numbers to stay whole.
    for heading in ("task", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("items", "shots", "value", "stderr", "chance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in scores:
        numbers = (score.value, score.stderr, score.chance)
        counts = (score.num_items, score.num_fewshot)
        table.add_row(
            score.task,
            score.metric,
            *("" if count is None else f"{count:,}" for count in counts),
            *("" if number is None else _short(number) for number in numbers),
        )
    return table


def _short(number: float) -> str:
    return f"{number:.4f}" if abs(number) < 100 else f"{number:.3g}"


def _report(values: Values, scores: "Sequence[Score]", seconds: float) -> str:
    """Everything that was asked and found, as JSON."""
    settings = {name: values[name] for name in ("model", *_FIELDS, "device", "dtype")}
    report: dict[str, Any] = {
        "settings": settings,
        "versions": {"retnet": __version__} | {name: version(name) for name in _PACKAGES},
        "seconds": round(seconds, 1),
        "scores": [asdict(score) for score in scores],
    }
    return json.dumps(report, indent=1) + "\n"


COMMAND = Command(
    summary="score a model on tasks of EleutherAI's evaluation harness",
    usage="[--model DIR] [--tasks NAME,...] [--task_data DIR] [flags]",
    details="Takes any causal model that transformers loads. DIR of --task_data has a folder a "
    "task, named as the task, with .jsonl, .json or .parquet files named as their splits.",
    add_flags=_add_flags,
    run=_run,
)
