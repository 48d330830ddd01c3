"""Which model a command is about: a preset and changes to it, or the folder of a trained one."""

import os
from pathlib import Path
from typing import Any

from retnet.commands.flags import UsageError, Values, add_flag, group_values
from retnet.config import PRESETS, ModelConfig, preset
from retnet.included import INCLUDED_MODEL


def add_preset(parser: Any, default: str | None) -> None:
    """Declare `--preset`."""
    sizes = ", ".join(f"{name} ({_in_short(num_parameters(PRESETS[name]))})" for name in PRESETS)
    text = f"a model by its size, with the number of its parameters: {sizes}"
    add_flag(parser, "preset", str, default, text, "NAME")


def model_config(values: Values) -> ModelConfig:
    """The model of --preset, with the fields changed that --model.FIELD names."""
    return preset(values["preset"], **group_values(values, "model"))


def add_model(parser: Any) -> None:
    """Declare `--model`."""
    text = "folder of a run or of another checkpoint; by default the model that comes with retnet"
    add_flag(parser, "model", str | None, None, text, "DIR")


def model_folder(model: str | None) -> Path:
    """The folder of --model, or of the model that comes with the package; UsageError where there
    is none.
    """
    if model is None:
        return INCLUDED_MODEL
    if not Path(model).is_dir():
        raise UsageError(
            f"--model {model!r} is not a folder; train a model with `retnet train`, or pass the "
            "folder of one"
        )
    return Path(model)


def num_parameters(config: ModelConfig) -> int:
    """Weights of the projections and embeddings: all but those of norms and biases."""
    embeddings = config.vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    return config.num_layers * config.layer_parameters + embeddings


def kv_cache_bytes(config: ModelConfig) -> int:
    """Bytes a token in the 16-bit KV cache of a Transformer with as many layers and this width."""
    return 2 * 2 * config.num_layers * config.d_model


def require_memory(config: ModelConfig, bytes_per_parameter: int) -> None:
    """UsageError where a model can't fit into this machine's memory."""
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return
    needed = num_parameters(config) * bytes_per_parameter
    if needed > available:
        raise UsageError(
            f"a model of {num_parameters(config):,} parameters takes {needed / 1e9:.0f} GB here, "
            f"and this machine has {available / 1e9:.0f}; choose a smaller --preset"
        )


def _in_short(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)
