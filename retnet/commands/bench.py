"""`retnet bench`."""

import sys
from typing import Literal

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, UsageError, Values, add_flag
from retnet.commands.models import add_preset, model_config, require_memory


def _add_flags(parser: ArgumentParser) -> None:
    add_preset(parser, "tiny")
    add_flag(parser, "dtype", Literal["fp32", "bf16"], "fp32", "of weights and inputs")
    add_flag(parser, "num_tokens", int, 1024, "length of the sequence, and of the prompt")
    add_flag(parser, "rounds", int, 5, "turns of each contender; the median counts")
    add_flag(parser, "threads", int | None, None, "CPU threads; none leaves torch's choice")
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

    from retnet.bench import FORM_COLUMNS, MODEL_COLUMNS, form_report, model_report, table
    from retnet.train.environment import threads

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[values["dtype"]]
    num_tokens, rounds = values["num_tokens"], values["rounds"]
    console = Console(highlight=False)
    what = f"{num_tokens:,} tokens, {values['dtype']}"
    with threads(values["threads"]):
        forms = form_report(dtype=dtype, num_tokens=num_tokens, rounds=rounds)
        if values["json"]:
            sys.stdout.write(forms.json_line() + "\n")
        else:
            console.print(f"{forms.machine['cpu']}, {forms.machine['threads']} threads, ")
            console.print(table(f"Retention, 8 heads, {what}", forms.rows, FORM_COLUMNS))
        model = model_report(config, dtype=dtype, num_tokens=num_tokens, rounds=rounds)
        if values["json"]:
            sys.stdout.write(model.json_line() + "\n")
        else:
            console.print(table(f"{values['preset']}, {what}", model.rows, MODEL_COLUMNS))
    return 0


COMMAND = Command(
    summary="measure the three forms and a model on this machine, in about a minute",
    usage="[--preset NAME] [flags]",
    details="benchmarks/ in the source tree compares with others.",
    add_flags=_add_flags,
    run=_run,
)
