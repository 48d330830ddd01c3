"""`retnet eval`."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from jsonargparse import ArgumentParser

from retnet import __version__
from retnet.commands.evaluate_text import TEXT_FLAGS, add_text_flags, require_text, score_text
from retnet.commands.flags import (
    Command,
    UsageError,
    Values,
    add_flag,
    attribute_texts,
    naming_flags,
)
from retnet.commands.models import add_model, model_folder
from retnet.eval.config import EvalConfig
from retnet.eval.local_data import require_folder as require_task_data

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from retnet.eval.harness import Score

_FIELDS = tuple(field.name for field in fields(EvalConfig))
_SPELLINGS = {"batch_size": ("--batch_size", "--batch-size")}
_METAVARS = {"tasks": "NAME,...", "task_data": "DIR"}


def _add_flags(parser: ArgumentParser) -> None:
    add_model(parser)
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
    add_text_flags(parser)
    add_flag(parser, "device", str, "auto", "cpu, cuda, ...; auto: cuda where there is one")
    add_flag(parser, "dtype", Literal["fp32", "bf16"], "fp32", "of weights and activations")
    add_flag(parser, "threads", int | None, None, "CPU threads; by default torch's choice")
    add_flag(parser, "out", str | None, None, "file for the figures, as JSON", "FILE")


def _run(values: Values) -> int:
    if values["threads"] is not None and values["threads"] < 1:
        raise UsageError(f"--threads must be at least 1, got {values['threads']}")
    if values["text"] is not None:
        return _run_text(values)
    require_text(values)
    with naming_flags({name: f"--{name}" for name in (*_FIELDS, "device")}):
        config = EvalConfig(**{name: values[name] for name in _FIELDS})
        out = _writable(values["out"])
        folder = model_folder(values["model"])
        if config.task_data is not None:
            require_task_data(Path(config.task_data))
        if find_spec("lm_eval") is None:
            raise UsageError("eval needs EleutherAI's lm_eval: pip install 'retnet[eval]'")

        from retnet.device import find_device

        device = find_device(values["device"])
        _require_model(folder)
        start, date = time.perf_counter(), datetime.now(UTC)
        scores = _evaluate(folder, config, device, values)
    seconds = time.perf_counter() - start
    if out is not None:
        settings = {"model": str(folder)} | {name: values[name] for name in (*_FIELDS, "dtype")}
        settings["device"] = str(device)
        found = [asdict(score) for score in scores]
        packages = ("lm_eval", "transformers", "torch")
        report = _report(settings, packages, {"scores": found}, date, seconds)
        out.write_text(report, encoding="utf-8")
    _show(scores, seconds)
    return 0


def _run_text(values: Values) -> int:
    from retnet.device import find_device

    flags = {"device": "--device", "num_bytes": "--roundtrip_bytes"}
    with naming_flags(flags):
        out, folder = _writable(values["out"]), model_folder(values["model"])
        device, date = find_device(values["device"]), datetime.now(UTC)
        start = time.perf_counter()
        found = score_text(folder, device, values)
    if out is not None:
        settings = {"model": str(folder)} | {name: values[name] for name in TEXT_FLAGS}
        settings["device"] = str(device)
        report = _report(settings, ("torch",), found, date, time.perf_counter() - start)
        out.write_text(report, encoding="utf-8")
    return 0 if found.get("roundtrip", {}).get("identical", True) else 1


def _require_model(folder: Path) -> None:
    """An error, before anything slow, for a folder without a model or tokenizer to evaluate."""
    from transformers import CONFIG_MAPPING

    from retnet.checkpoint import MODEL_TYPE, read_config, refuse_other_model
    from retnet.checkpoint.files import CONFIG_FILE, read_fields
    from retnet.data.tokenizer import OtherTokenizerError, load_tokenizer

    # An adapter has the configuration of its model elsewhere.
    if not (folder / "adapter_config.json").is_file():
        fields = read_fields(folder)
        if fields.get("model_type") == MODEL_TYPE:
            read_config(folder)
        elif fields.get("model_type") not in CONFIG_MAPPING:
            refuse_other_model(fields, str(folder / CONFIG_FILE))
    with suppress(OtherTokenizerError):
        load_tokenizer(folder)


def _evaluate(
    folder: Path, config: EvalConfig, device: "torch.device", values: Values
) -> "list[Score]":
    from retnet.device import threads
    from retnet.eval.harness import prepare, score

    with threads(values["threads"]):
        tasks = prepare(config)

        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        import retnet.hf  # noqa: F401, it makes our models known to the two

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[values["dtype"]]
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return score(model.to(device), tokenizer, config, tasks)


def _writable(out: str | None) -> Path | None:
    """The path of --out, if it was passed; UsageError now, not after an hour, for a wrong one."""
    if out is None:
        return None
    path = Path(out)
    if not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--out {out!r} must be a file in a folder that exists")
    if path.exists():
        raise UsageError(f"--out {out!r} exists already; choose another name, or move it away")
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


def _report(
    settings: Values,
    packages: "Sequence[str]",
    found: Values,
    date: datetime,
    seconds: float,
) -> str:
    """Everything that was asked and found, as JSON."""
    report: dict[str, Any] = {
        "settings": settings,
        "versions": {"retnet": __version__} | {name: version(name) for name in packages},
        "date": date.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        **found,
    }
    return json.dumps(report, indent=1) + "\n"


COMMAND = Command(
    summary="score a model on tasks of EleutherAI's evaluation harness, or on text",
    usage="[--model DIR] [--tasks NAME,...] [--task_data DIR] [--text SOURCE] [flags]",
    details="Takes any causal model that transformers loads. DIR of --task_data has a folder a "
    "task, named as the task, with .jsonl, .json or .parquet files named as their splits; the "
    "members of a group have one each. docs/evaluation.md has examples.",
    add_flags=_add_flags,
    run=_run,
)
