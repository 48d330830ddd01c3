"""`retnet bench`."""

import sys
from collections.abc import Mapping
from typing import Literal

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, UsageError, Values, add_flag
from retnet.commands.models import add_preset, model_config, require_memory


def _add_flags(parser: ArgumentParser) -> None:
    add_preset(parser, "tiny")
    add_flag(parser, "dtype", Literal["fp32", "bf16"], "fp32", "of weights and inputs")
    add_flag(parser, "num_tokens", int, 1024, "length of the sequence, and of the prompt")
    add_flag(parser, "rounds", int, 5, "turns of each contender; the median counts")
    add_flag(parser, "threads", int | None, None, "CPU threads; by default torch's choice")
    text = "print one line of JSON for each table instead"
    parser.add_argument("--json", action="store_true", help=text)


def _run(values: Values) -> int:
    for name in ("num_tokens", "rounds", "threads"):
        if values[name] is not None and values[name] < 1:
            raise UsageError(f"--{name} must be at least 1, got {values[name]}")
    config = model_config(values)
    require_memory(config, 4 if values["dtype"] == "fp32" else 6)

    import torch
    from rich.console import Console

    from retnet.bench import (
        FORM_COLUMNS,
        MODEL_COLUMNS,
        Report,
        form_report,
        model_report,
        table,
    )
    from retnet.device import threads

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[values["dtype"]]
    num_tokens, rounds = values["num_tokens"], values["rounds"]
    console = Console(highlight=False)
    what = f"{num_tokens:,} tokens, {values['dtype']}"

    def show(report: Report, title: str, columns: Mapping[str, str]) -> None:
        if values["json"]:
            sys.stdout.write(report.json_line() + "\n")
        else:
            console.print(table(f"{title}, {what}", report.rows, columns))

    with threads(values["threads"]):
        forms = form_report(dtype=dtype, num_tokens=num_tokens, rounds=rounds)
        if not values["json"]:
            machine = forms.machine
            versions = f"torch {machine['torch']}, Python {machine['python']}"
            console.print(f"{machine['cpu']}, {machine['threads']} threads, {versions}")
        show(forms, "Retention, 8 heads", FORM_COLUMNS)
        model = model_report(config, dtype=dtype, num_tokens=num_tokens, rounds=rounds)
        show(model, values["preset"], MODEL_COLUMNS)
    return 0


COMMAND = Command(
    summary="measure the three forms and a model on this machine",
    usage="[--preset NAME] [flags]",
    details="benchmarks/ in the source tree compares with others.",
    add_flags=_add_flags,
    run=_run,
)
