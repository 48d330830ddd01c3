"""Models and states on disk: safetensors and JSON, never pickle.

A checkpoint is a directory with `config.json`, `model.safetensors` and the tokenizer's files. Files
are written aside and renamed, so that a kill or a full disk leaves what was there before.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retnet.config import ModelConfig
from retnet.model import RetNet, RetNetState

MODEL_TYPE = "retentive"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
STATE_FORMAT = "retnet-state-1"


class CheckpointError(ValueError):
    """A checkpoint or state that can't be written, can't be read, or belongs to something else."""


class SavesItself(Protocol):
    """A tokenizer, as far as a checkpoint is concerned."""

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
    weights = {
        name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()
    }
    config = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            tokenizer.save(directory)
        text = json.dumps(config, indent=2) + "\n"
        _replace_files(
            {
                directory / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
                directory / WEIGHTS_FILE: lambda path: save_file(weights, path, {"format": "pt"}),
            }
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save to {directory}: {error}; what was there before is kept"
        ) from error


def load_checkpoint(
    directory: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> RetNet:
    """The model of a checkpoint directory, in evaluation mode.

    Args:
        device: where its weights go.
        dtype: what its weights are cast to; None for as they are stored.

    Raises:
        CheckpointError: for a directory that holds no checkpoint of ours, or a broken one.
    """
    directory = Path(directory)
    config = read_config(directory)
    weights = _read_weights(directory / WEIGHTS_FILE)
    with torch.device("meta"):
        model = RetNet(config)
    _check_weights(model, weights, directory)
    model.load_state_dict(weights, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def fingerprint(model: RetNet) -> str:
    """A short name for a model: a hash of its configuration and of weights sampled from every
    tensor.

    Values are compared after rounding to bf16, so that a model keeps its name when it is cast to
    bf16.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        places = torch.linspace(
            0, tensor.numel() - 1, min(tensor.numel(), 256), dtype=torch.float64
        ).long()
        values = tensor.flatten()[places.to(tensor.device)].to(torch.bfloat16).float().cpu()
        digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:32]


def save_state(path: str | Path, state: RetNetState, model: RetNet) -> None:
    """Write a state, with its model's fingerprint; `load_state` gives back the same bits."""
    path = Path(path)
    tensors = {f"layers.{i}": layer.contiguous().cpu() for i, layer in enumerate(state.layers)}
    tensors["position"] = state.position.contiguous().cpu()
    metadata = {"format": STATE_FORMAT, "fingerprint": fingerprint(model)}
    try:
        _replace_files({path: lambda aside: save_file(tensors, aside, metadata)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not save the state to {path}: {error}") from error


def load_state(path: str | Path, model: RetNet) -> RetNetState:
    """The state that `save_state` wrote, on the model's device; another model's is refused."""
    path = Path(path)
    tensors, metadata = _read_safetensors(path)
    if metadata.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{path} is not a saved state; expected a file written by save_state")
    expected = fingerprint(model)
    if metadata.get("fingerprint") != expected:
        raise CheckpointError(
            f"{path} is a state of another model (fingerprint {metadata.get('fingerprint')}, "
            f"this one is {expected}); "
            "load it with the model that wrote it"
        )
    device = model.backbone.embed_tokens.weight.device
    names = [f"layers.{i}" for i in range(model.config.num_layers)]
    missing = [name for name in (*names, "position") if name not in tensors]
    if missing:
        raise CheckpointError(f"{path} is damaged: {', '.join(missing)} is missing in it")
    return RetNetState(
        tuple(tensors[name].to(device) for name in names), tensors["position"].to(device)
    )


def _replace_files(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Let each function write a file beside its path; once all are on the disk, rename them."""
    asides = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in writers}
    try:
        for path, write in writers.items():
            write(asides[path])
            with asides[path].open("rb") as file:
                os.fsync(file.fileno())
        for path, aside in asides.items():
            os.replace(aside, path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


def read_config(directory: str | Path) -> ModelConfig:
    """The configuration of a checkpoint directory; its weights are not read."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no checkpoint: there is no {CONFIG_FILE} in it")
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(fields, dict) or fields.pop("model_type", None) != MODEL_TYPE:
        raise CheckpointError(f"{path} is not of this project: expected model_type {MODEL_TYPE!r}")
    try:
        return ModelConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    return _read_safetensors(path)[0]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            # Copied out of the mapped file, where they lie unaligned: some products of unaligned
            # numbers round differently.
            tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged or not safetensors ({error}); restore it or train again"
        ) from error


def _check_weights(model: RetNet, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Raise unless the weights are the model's, by name and shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not of this model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tensor.dtype}, expected a float dtype"
        for name, tensor in weights.items()
        if not tensor.dtype.is_floating_point
    ]
    problems += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:3])
        raise CheckpointError(
            f"{directory}: weights and {CONFIG_FILE} disagree ({len(problems)}): {listed}"
        )
