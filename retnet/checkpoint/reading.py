"""Other projects' checkpoints as they lie on the disk: a configuration, and tensors by name.

Safetensors are read. A pickle can run code when it is read, so it takes a word from the caller, and
is then read with what torch offers against that: nothing but tensors, plain values and
`argparse.Namespace` is made of it.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retnet.checkpoint.files import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    CheckpointError,
    listed_tensors,
    read_object,
    read_safetensors,
    read_weights,
    shard_names,
)

_PICKLE_FILE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_PICKLE_ENDINGS = (".bin", ".pt", ".pth")
_REMEDY = "fetch it again"


@dataclass(frozen=True)
class Source:
    """A checkpoint of another project, all in memory.

    directory: where it lies, with the tokenizer's files.
    """

    directory: Path
    weights: dict[str, Tensor]
    fields: dict[str, Any]


def read_source(
    path: str | Path, *, fields_file: str | Path | None = None, allow_pickle: bool = False
) -> Source:
    """A checkpoint: a directory, or the file of its weights.

    Args:
        path: a directory with model.safetensors or pytorch_model.bin, in one file or several, or a
            file of tensors: .safetensors, or a pickle (.bin, .pt, .pth), fairseq's too.
        fields_file: a JSON file of its configuration; None for the config.json beside the weights,
            or what fairseq keeps in the same file.
        allow_pickle: whether a pickle is read.

    Raises:
        CheckpointError: where it can't be read, or is a pickle and that isn't allowed.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"there is no {path}; pass a directory or a file of weights (one of the Hugging Face "
            "hub: hf download NAME --local-dir DIR)"
        )
    directory = path if path.is_dir() else path.parent
    weights, own_fields = _read_any(path, allow_pickle=allow_pickle)
    beside = directory / CONFIG_FILE
    if fields_file is not None:
        fields = read_object(Path(fields_file))
    elif own_fields:
        fields = own_fields
    elif beside.is_file():
        fields = read_object(beside)
    else:
        raise CheckpointError(f"there is no {beside}; name the configuration with --fields FILE")
    return Source(directory, weights, fields)


def _read_any(path: Path, *, allow_pickle: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a directory or file, and the fields that are in the same file, if any are."""
    if path.is_dir():
        if (path / WEIGHTS_FILE).is_file() or (path / INDEX_FILE).is_file():
            return read_weights(path, remedy=_REMEDY), {}
        if (path / _PICKLE_FILE).is_file():
            return _read_pickle(path / _PICKLE_FILE, allow_pickle=allow_pickle)
        if (path / _PICKLE_INDEX).is_file():
            return _read_pickles(path / _PICKLE_INDEX, allow_pickle=allow_pickle), {}
        raise CheckpointError(
            f"{path} holds neither {WEIGHTS_FILE} nor {_PICKLE_FILE}, nor an index of several; "
            "name the file of the weights itself"
        )
    if path.suffix == ".safetensors":
        return read_safetensors(path, remedy=_REMEDY)[0], {}
    if path.suffix in _PICKLE_ENDINGS:
        return _read_pickle(path, allow_pickle=allow_pickle)
    raise CheckpointError(
        f"{path} is no file of weights by its name; expected one that ends in .safetensors, "
        f"{', '.join(_PICKLE_ENDINGS)}"
    )


def _read_pickles(index: Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in shard_names(index):
        tensors |= _read_pickle(index.parent / name, allow_pickle=allow_pickle)[0]
    return listed_tensors(index, tensors)


def _read_pickle(path: Path, *, allow_pickle: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not allow_pickle:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read; ask for safetensors, or pass "
            "--allow_pickle, and only what can't run any is read of it"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter(
                "ignore"
            )  # about pickles of other writers; they load or they don't
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise CheckpointError(f"{path} {_reason(error)}") from error
    return _tensors_of(content, path), _fields_of(content)


def _reason(error: Exception) -> str:
    """Why torch doesn't read a file, without its advice to trust it."""
    wanted = re.search(r"GLOBAL ([\w.]+\w)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return (
            f"wants to call {wanted[1]}, and nothing of it was read; don't trust it, unless you "
            "know what for: then save its state dict as safetensors with the program that wrote it"
        )
    return (
        "can't be read as tensors and plain values alone: it is damaged or something else "
        f"({type(error).__name__}); fetch it again, or save its state dict as safetensors with the "
        "program that wrote it"
    )


def _tensors_of(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one that a trainer's file holds."""
    found = content
    if isinstance(content, Mapping):
        inner = [content[name] for name in ("model", "state_dict") if name in content]
        found = inner[0] if inner else content
    tensors = dict(found) if isinstance(found, Mapping) else {}
    if tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        return tensors
    raise CheckpointError(
        f"{path} holds no state dict; expected tensors by name, alone or under 'model'"
    )


def _fields_of(content: object) -> dict[str, Any]:
    """What fairseq keeps of the model's settings: 'args', and later 'model' under 'cfg'."""
    if not isinstance(content, Mapping):
        return {}
    later = content.get("cfg")
    found = content.get("args") or (later.get("model") if isinstance(later, Mapping) else None)
    return dict(vars(found)) if isinstance(found, argparse.Namespace) else dict(found or {})
