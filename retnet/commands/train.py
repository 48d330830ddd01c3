"""`retnet train`."""

import os
import shlex
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

from retnet.allocator import tune_allocator
from retnet.commands.flags import Command, Values, add_fields, group_values, naming_flags
from retnet.commands.models import add_preset, model_config, require_memory
from retnet.commands.terminal import showing_log
from retnet.config import ModelConfig
from retnet.train.config import PARTS, TrainConfig

# fp32 weights, their gradients and AdamW's two means.
_BYTES_PER_PARAMETER = 16

_ABOUT = {
    "optimizer": "AdamW and its learning rate.",
    "parallel": "How the processes that torchrun started share the work; docs/parallel.md.",
    "log": "What the run tells besides its losses.",
}

_FLAG_OF_FIELD = {
    field.name: f"--{prefix}.{field.name}"
    for prefix, config in {"model": ModelConfig, "train": TrainConfig, **PARTS}.items()
    for field in fields(config)
}


def _add_flags(parser: ArgumentParser) -> None:
    add_preset(parser, "tiny")
    text = (
        "go on from the newest checkpoint in --train.out, with the settings of that run; where "
        "there is no run, begin one"
    )
    parser.add_argument("--resume", action="store_true", help=text)
    text = (
        "have glibc keep freed memory instead of handing it back to the system: faster on CPUs, "
        "for more memory (retnet/allocator.py)"
    )
    parser.add_argument("--tune_allocator", action="store_true", help=text)
    add_fields(
        parser,
        TrainConfig,
        prefix="train",
        about="The run: the text, where it goes, how long and how fast.",
    )
    for name, part in PARTS.items():
        add_fields(parser, part, prefix=name, about=_ABOUT[name])
    add_fields(
        parser,
        ModelConfig,
        prefix="model",
        about="Changes to the preset. B batch, T tokens, H heads, K key size and V value size of "
        "a head, D width of the model, L layers. `retnet inspect --preset NAME` shows a preset.",
        unset=True,
    )


def _run(values: Values) -> int:
    with naming_flags(_FLAG_OF_FIELD):
        model = model_config(values)
        parts = {name: group_values(values, name) for name in PARTS}
        run = TrainConfig.from_dict({**group_values(values, "train"), **parts})
        return _train(
            model, run, resume=values["resume"], with_tuned_allocator=values["tune_allocator"]
        )


def _settings_of_run(given: Values) -> dict[str, Any]:
    """What a run that is to be gone on with was started with; nothing where there is none."""
    if not given.get("resume"):
        return {}

    from retnet.train.folder import RunFolder

    folder = RunFolder(given.get("train.out", TrainConfig.out))
    if not folder.holds_a_run():
        return {}
    run = folder.read_run()
    settings: dict[str, Any] = {}
    if "preset" not in given:  # which would be chosen in vain
        settings |= {f"model.{name}": value for name, value in run["model"].items()}
    for name, value in run["train"].items():
        if name in PARTS:
            settings |= {f"{name}.{each}": setting for each, setting in value.items()}
        else:
            settings[f"train.{name}"] = value
    return settings


def _train(
    model: ModelConfig, run: TrainConfig, *, resume: bool, with_tuned_allocator: bool
) -> int:
    from rich.console import Console

    from retnet.device import find_device
    from retnet.train.loop import train

    if find_device(run.device).type == "cpu":
        require_memory(model, _BYTES_PER_PARAMETER)
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    console = Console(highlight=False, quiet=not is_first)
    if with_tuned_allocator:
        console.print(f"allocator: {tune_allocator().detail}", style="dim", soft_wrap=True)
    with showing_log(console):
        result = train(model, run, resume=resume, console=console)
    out = shlex.quote(str(result.out))
    console.print(f'Write with it: retnet generate "..." --model {out}', soft_wrap=True)
    return result.exit_code


COMMAND = Command(
    summary="train a new model on a file, a folder of text, or Python's own sources",
    usage="[--config FILE] [--preset NAME] [--train.FIELD VALUE ...] [--model.FIELD VALUE ...]",
    details="Ctrl-C ends the run after its current step, with everything saved; the same command "
    "with --resume goes on from there.",
    add_flags=_add_flags,
    settings=_settings_of_run,
    run=_run,
)
