"""`retnet train`."""

import logging
import shlex
from dataclasses import fields
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, Values, add_fields, group_values, naming_flags
from retnet.commands.models import add_preset, model_config, require_memory
from retnet.config import ModelConfig
from retnet.train.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

# fp32 weights, their gradients and AdamW's two means.
_BYTES_PER_PARAMETER = 16

_FLAG_OF_FIELD = {
    field.name: f"--{prefix}.{field.name}"
    for prefix, config in (("model", ModelConfig), ("train", TrainConfig))
    for field in fields(config)
}


def _add_flags(parser: ArgumentParser) -> None:
    add_preset(parser, "tiny")
    add_fields(
        parser,
        TrainConfig,
        prefix="train",
        about="The run: the text, where it goes, how long and how fast.",
    )
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
        run = TrainConfig.from_dict(group_values(values, "train"))
        return _train(model, run)


def _train(model: ModelConfig, run: TrainConfig) -> int:
    from rich.console import Console

    from retnet.train.environment import find_device
    from retnet.train.loop import train

    if find_device(run.device).type == "cpu":
        require_memory(model, _BYTES_PER_PARAMETER)
    console = Console(highlight=False)
    show_log(console)
    result = train(model, run, console=console)
    if result.stopped_by is None:
        out = shlex.quote(str(result.out))
        console.print(f'Write with it: retnet generate "..." --model {out}', soft_wrap=True)
    return result.exit_code


def show_log(console: "Console") -> None:
    """Show what the library logs (which files it left out, and why) as lines of the console."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(record.getMessage(), markup=False, style="dim", soft_wrap=True)

    logger = logging.getLogger("retnet")
    logger.handlers = [Lines()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


COMMAND = Command(
    summary="train a new model on a file, a folder of text, or Python's own sources",
    usage="[--config FILE] [--preset NAME] [--train.FIELD VALUE ...] [--model.FIELD VALUE ...]",
    details="Ctrl-C ends the run after its current step, with everything saved.",
    add_flags=_add_flags,
    run=_run,
)
