"""A model as a directory: config.json, model.safetensors and the tokenizer's files.

Files are written aside and renamed, so that a kill or a full disk leaves what was there before.
"""

import json
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from retnet.checkpoint.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    read_fields,
    read_weights,
    replace_files,
)
from retnet.checkpoint.layouts import layout_of_fields
from retnet.checkpoint.weights import build_model, check_weights, expected_shapes
from retnet.config import ModelConfig
from retnet.included import INCLUDED_MODEL
from retnet.model import RetNet

MODEL_TYPE = "retentive"

_MODEL_FIELDS = [field.name for field in dataclass_fields(ModelConfig)]
_TOKEN_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_HEAD, _EMBEDDING = "lm_head.weight", "backbone.embed_tokens.weight"


class SavesItself(Protocol):
    """A tokenizer, as far as a checkpoint is concerned."""

    @property
    def pad_id(self) -> int | None:
        """The id of padding, if there is one."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a document, if there is one."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, if there is one."""

    def save(self, directory: Path) -> None:
        """Write its files into the directory."""


def save_checkpoint(
    directory: str | Path, model: RetNet, tokenizer: SavesItself | None = None
) -> None:
    """Write a model, and its tokenizer where one is given, replacing a checkpoint that is there.

    Raises:
        CheckpointError: where that fails; an older checkpoint is then still whole.
    """
    directory = Path(directory)
    ids = {}
    if tokenizer is not None:
        found = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
        ids = dict(zip(_TOKEN_FIELDS, found, strict=True))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            tokenizer.save(directory)
        write_model(directory, model, ids)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save to {directory}: {error}; what was there before is kept"
        ) from error


def write_model(directory: Path, model: RetNet, token_ids: Mapping[str, Any]) -> None:
    """Write a model's two files into a directory, both or none.

    token_ids: what config.json says of the tokenizer, such as bos_token_id; None is left out.
    """
    fields = {
        "architectures": ["RetNetForCausalLM"],
        "model_type": MODEL_TYPE,
        **model.config.to_dict(),
        **{name: token_ids[name] for name in _TOKEN_FIELDS if token_ids.get(name) is not None},
    }
    write_tensors_and_fields(directory, model.state_dict(), fields)


def write_tensors_and_fields(
    directory: Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]
) -> None:
    """Write model.safetensors and config.json into a directory, both or none."""
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text = json.dumps(fields, indent=2) + "\n"
    replace_files(
        {
            directory / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
            directory / WEIGHTS_FILE: lambda path: save_file(weights, path, {"format": "pt"}),
        }
    )


def load_checkpoint(
    directory: str | Path = INCLUDED_MODEL,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> RetNet:
    """The model of a checkpoint directory, in evaluation mode.

    Args:
        directory: written by `save_checkpoint`, or by `save_pretrained` of `retnet.hf`; the weights
            may be in several files under model.safetensors.index.json. By default the model that
            comes with the package.
        device: where its weights go.
        dtype: what its weights are cast to; None for as they are stored.

    Raises:
        CheckpointError: for a directory that holds no checkpoint of ours, or a broken one.
    """
    directory = Path(directory)
    config = read_config(directory)
    if "quantization_config" in read_fields(directory):
        raise CheckpointError(
            f"{directory} holds quantised weights, which only transformers reads: import "
            "retnet.hf, then AutoModelForCausalLM.from_pretrained"
        )
    weights = _of_whole_model(read_weights(directory), config, directory)
    check_weights(
        weights, expected_shapes(config), f"the weights of {directory}", f"its {CONFIG_FILE}"
    )
    return build_model(config, weights).to(device=device, dtype=dtype)


def read_config(directory: str | Path) -> ModelConfig:
    """The configuration of a checkpoint directory; its weights are not read."""
    path = Path(directory) / CONFIG_FILE
    fields = read_fields(directory)
    refuse_other_model(fields, str(path))
    try:
        return ModelConfig.from_dict(_own_fields(fields))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def refuse_other_model(fields: Mapping[str, Any], where: str = CONFIG_FILE) -> None:
    """CheckpointError for the fields of another kind of model, with how to convert it if it can
    be."""
    if fields.get("model_type") == MODEL_TYPE:
        return
    message = f"{where} is not of this project: expected model_type {MODEL_TYPE!r}"
    layout = layout_of_fields(fields)
    if layout is not None:
        message += f"; it looks like {layout}'s: retnet convert --from {layout} SRC DST"
    raise CheckpointError(message)


def _own_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a ModelConfig, and unknown ones, which it refuses; what transformers adds left out.

    It writes dozens into its files, which it marks by its version.
    """
    by_transformers = "transformers_version" in fields
    beside = ("model_type", "architectures", *_TOKEN_FIELDS)
    return {
        name: value
        for name, value in fields.items()
        if name in _MODEL_FIELDS or not (by_transformers or name in beside)
    }


def _of_whole_model(
    weights: dict[str, Tensor], config: ModelConfig, directory: Path
) -> dict[str, Tensor]:
    """The weights without the head that a tied model has twice; CheckpointError without a head."""
    if _EMBEDDING.removeprefix("backbone.") in weights or not (
        config.tie_embeddings or _HEAD in weights
    ):
        raise CheckpointError(
            f"{directory}: the weights are those of a model without its output head ({_HEAD} or "
            "the prefix 'backbone.' is missing); save the whole model, as RetNetForCausalLM"
        )
    if not config.tie_embeddings or _HEAD not in weights:
        return weights
    if _EMBEDDING in weights and not torch.equal(weights[_HEAD], weights[_EMBEDDING]):
        raise CheckpointError(
            f"{directory}: {_HEAD} is not the embedding, and {CONFIG_FILE} says tie_embeddings; "
            "set that to false there to use both"
        )
    return {name: tensor for name, tensor in weights.items() if name != _HEAD}
