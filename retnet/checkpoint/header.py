"""The beginning of a safetensors file, read with suspicion: what it says it holds, and where."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retnet.checkpoint.files import CheckpointError


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor.

    dtype: safetensors' name of it; start, end: where its bytes lie in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says it holds.

    end: how many bytes it has, if it is whole.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    end: int


def parse_header(beginning: bytes, most_bytes: int, name: str) -> Header:
    """The header at the beginning of a file, of which most_bytes + 8 bytes suffice.

    name: the file's, for errors.

    Raises:
        CheckpointError: where it is no header, or a longer one.
    """
    size = int.from_bytes(beginning[:8], "little")
    if not 0 < size <= min(len(beginning) - 8, most_bytes):
        raise _damaged(name, "its header is cut short, or longer than any of a state")
    try:
        fields = json.loads(beginning[8 : 8 + size])
    except (ValueError, RecursionError):
        raise _damaged(name, "its header is no JSON") from None
    metadata = fields.pop("__metadata__", {}) if isinstance(fields, dict) else None
    if not isinstance(metadata, dict) or not all(map(_is_entry, fields.values())):
        raise _damaged(name, "its header describes no tensors")
    tensors = {key: _entry(field, 8 + size) for key, field in fields.items()}
    end = max((entry.end for entry in tensors.values()), default=8 + size)
    return Header(tensors, {key: str(value) for key, value in metadata.items()}, end)


def _entry(field: Mapping[str, Any], base: int) -> TensorEntry:
    start, end = field["data_offsets"]
    return TensorEntry(field["dtype"], tuple(field["shape"]), base + start, base + end)


def _is_entry(field: object) -> bool:
    """Whether that is what a header says of a tensor."""
    if not isinstance(field, dict) or not isinstance(field.get("dtype"), str):
        return False
    shape, offsets = field.get("shape"), field.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(type(number) is int and number >= 0 for number in (*shape, *offsets))


def _damaged(name: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is damaged or not safetensors ({why}); restore it from a copy, or begin anew"
    )
