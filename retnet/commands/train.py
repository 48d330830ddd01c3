"""`retnet train`."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
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
    with _showing_log(console):
        result = train(model, run, console=console)
    out = shlex.quote(str(result.out))
    console.print(f'Write with it: retnet generate "..." --model {out}', soft_wrap=True)
    return result.exit_code


class _Lines(logging.Handler):
    """Shows what is logged as lines of a console, above its progress bar."""

    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False, style="dim", soft_wrap=True)


@contextmanager
def _showing_log(console: "Console") -> Iterator[None]:
    """Inside, what the library logs is shown: which files it left out, why there is no plot."""
    logger, handler = logging.getLogger("retnet"), _Lines(console)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


COMMAND = Command(
    summary="train a new model on a file, a folder of text, or Python's own sources",
    usage="[--config FILE] [--preset NAME] [--train.FIELD VALUE ...] [--model.FIELD VALUE ...]",
    details="Ctrl-C ends the run after its current step, with everything saved.",
    add_flags=_add_flags,
    run=_run,
)
