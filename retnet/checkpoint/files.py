"""Files of tensors and of fields: read whole or refused, written aside and renamed."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint or state that can't be written, can't be read, or belongs to something else."""


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}") from error


def read_fields(directory: str | Path) -> dict[str, Any]:
    """The fields of a directory's config.json, whoever wrote it."""
    path = Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no checkpoint: there is no {CONFIG_FILE} in it")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """The fields of a JSON file."""
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} is no configuration: expected fields by name, in braces")
    return fields


def read_safetensors(
    path: Path, *, remedy: str = "restore it or train again"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and its metadata.

    remedy: what to do about a damaged one.
    """
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
            f"{path} is damaged or not safetensors ({error}); {remedy}"
        ) from error
    except (RuntimeError, MemoryError) as error:  # the former is torch's word for the latter
        raise CheckpointError(
            f"{path} of {path.stat().st_size:,} bytes can't be brought into memory: {error}; "
            "free some or raise its limit"
        ) from error


def read_weights(
    directory: str | Path, *, remedy: str = "restore it or train again"
) -> dict[str, Tensor]:
    """The tensors of a directory: of model.safetensors, or of the files that its index lists."""
    directory = Path(directory)
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file() or not index.is_file():
        return read_safetensors(single, remedy=remedy)[0]
    tensors: dict[str, Tensor] = {}
    for name in shard_names(index):
        tensors |= read_safetensors(directory / name, remedy=remedy)[0]
    return listed_tensors(index, tensors)


def shard_names(index: Path) -> list[str]:
    """The files that an index lists, each once; only files beside it are accepted."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, expected a file in the same directory")
    return names


def listed_tensors(index: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, after a check that they are those of the index."""
    missing = sorted(_weight_map(index).keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{index} lists {missing[0]}, which is in none of its files ({len(missing)} such); "
            "fetch the files again"
        )
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(f"{index} is no index of shards: expected files under 'weight_map'")
    return found


def replace_files(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Let each function write a file beside its path; once all are on the disk, rename them.

    They get the mode that new files have here; safetensors would let only their owner read them.
    """
    # Not by the process id alone: several machines may share the folder.
    ours = f"{os.getpid()}-{secrets.token_hex(4)}"
    asides = {path: path.with_name(f".{path.name}.{ours}.part") for path in writers}
    try:
        for path, write in writers.items():
            asides[path].touch()
            mode = asides[path].stat().st_mode
            write(asides[path])
            asides[path].chmod(mode)
            with asides[path].open("rb") as file:
                os.fsync(file.fileno())
        for path, aside in asides.items():
            os.replace(aside, path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor an infinity; one pass and no copy."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())
