"""A state or a conversation as a file, bound to the model that wrote it.

A file is safetensors: `layers.0`, `layers.1`, ... [B, H, K, V] and `position` [B], and for a
conversation `unread` [N], each int64. One that has read nothing has `unread` alone. Nothing in a
file is believed: names, types, shapes and values are checked against the model.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from retnet.checkpoint.files import CheckpointError, all_finite, replace_files
from retnet.checkpoint.header import Header, TensorEntry, parse_header
from retnet.model import RetNet, RetNetState
from retnet.ops.reference import accumulation_dtype

STATE_FORMAT = "retnet-state-1"
MOST_UNREAD = 2**16  # tokens of a conversation that a file may hold unread

_MOST_HEADER_BYTES = 2**18
_MOST_TOKENS = 2**53  # positions beyond are no exact angles
_DTYPE_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
_REMEDY = "restore it from a copy, or begin anew"


@dataclass(frozen=True)
class Conversation:
    """A text as a model has it in mind: a value, never changed in place.

    Attributes:
        state: after all of its tokens but the unread ones, one row; None where none was read.
        unread: its last tokens, which have not been read yet; typically the one generated last.
    """

    state: RetNetState | None = None
    unread: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.state is not None and len(self.state.position) != 1:
            raise ValueError(f"state must have one row, got {len(self.state.position)}")

    @property
    def num_tokens(self) -> int:
        """How many tokens the text has."""
        return len(self.unread) + (0 if self.state is None else int(self.state.position))

    @property
    def state_bytes(self) -> int:
        """Bytes of memory that the state takes, however long the text."""
        return 0 if self.state is None else self.state.num_bytes

    def to(self, device: torch.device | str) -> "Conversation":
        """The same with its state on a device."""
        return self if self.state is None else replace(self, state=_moved(self.state, device))


@dataclass(frozen=True)
class ConversationSummary:
    """What the beginning of a conversation's file tells.

    created: when the conversation began, in Unix seconds; None where the file doesn't say.
    """

    num_tokens: int
    state_bytes: int
    created: int | None


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
    """Write a state of any number of rows, with its model's fingerprint; `load_state` gives back
    the same bits."""
    _write(Path(path), save(_tensors(state), _metadata(fingerprint(model))))


def load_state(path: str | Path, model: RetNet) -> RetNetState:
    """The state that `save_state` wrote, on the model's device; another model's is refused."""
    state, unread = _parsed(_read(Path(path)), StateFormat(model), str(path))
    if state is None or unread:
        raise CheckpointError(
            f"{path} is a conversation with {len(unread)} tokens that have not been read; "
            "load it with StateFormat(model).load"
        )
    return _moved(state, model.backbone.embed_tokens.weight.device)


class StateFormat:
    """How conversations with one model are written and read, as bytes and as files.

    What is read is on the CPU. The model's fingerprint is taken once, here.

    Attributes:
        fingerprint: see the function of that name.
        layer_shape: [H, K, V], of a text's state in a layer.
        state_bytes: bytes of a text's state.
        most_bytes: a conversation takes no more as a file.
    """

    def __init__(self, model: RetNet) -> None:
        config = model.config
        self.fingerprint = fingerprint(model)
        self.num_layers, self.vocab_size = config.num_layers, config.vocab_size
        self.layer_shape = config.state_shape
        self.dtype = accumulation_dtype(model.backbone.embed_tokens.weight.dtype)
        self.state_bytes = self.num_layers * prod(self.layer_shape) * self.dtype.itemsize
        self.most_bytes = 8 + _MOST_HEADER_BYTES + self.state_bytes + 8 * (1 + MOST_UNREAD)

    def to_bytes(self, conversation: Conversation, *, created: int | None = None) -> bytes:
        """What a file of a conversation holds. created: see `ConversationSummary`.

        Raises:
            ValueError: for what could not be read again: another model's state, one with what is
                no number in it, more than MOST_UNREAD unread tokens.
        """
        tensors = {} if conversation.state is None else _tensors(conversation.state)
        tensors["unread"] = torch.tensor(conversation.unread, dtype=torch.int64)
        data = save(tensors, _metadata(self.fingerprint, created))
        _check_header(_header(data, "conversation"), self, "conversation")
        _check_values(tensors, self, "conversation")
        return data

    def from_bytes(self, data: bytes, *, name: str = "the file") -> Conversation:
        """The conversation that a file holds; CheckpointError, with the file's name, otherwise."""
        state, unread = _parsed(data, self, name)
        if state is not None and len(state.position) != 1:
            raise CheckpointError(
                f"{name} holds the states of {len(state.position)} texts; expected one"
            )
        return Conversation(state, unread)

    def save(
        self, path: str | Path, conversation: Conversation, *, created: int | None = None
    ) -> None:
        """Write a file, replacing one that is there; CheckpointError where that fails."""
        _write(Path(path), self.to_bytes(conversation, created=created))

    def load(self, path: str | Path) -> Conversation:
        """The conversation of a file; CheckpointError where it is damaged or another model's."""
        return self.from_bytes(_read(Path(path), self.most_bytes), name=str(path))

    def summary(self, file: BinaryIO, *, name: str = "the file") -> ConversationSummary:
        """What a file holds, by its beginning; its states are not read."""
        header = _header(file.read(8 + _MOST_HEADER_BYTES), name)
        _check_header(header, self, name)
        size = file.seek(0, os.SEEK_END)
        if size != header.end:
            raise CheckpointError(
                f"{name} is damaged: it has {size:,} bytes, expected {header.end:,}; {_REMEDY}"
            )
        position, unread = header.tensors.get("position"), header.tensors.get("unread")
        num_unread = 0 if unread is None else unread.shape[0]
        num_read, state_bytes = 0, 0
        if position is not None:
            file.seek(position.start)
            num_read, state_bytes = int.from_bytes(file.read(8), "little"), self.state_bytes
        return ConversationSummary(num_read + num_unread, state_bytes, _created(header))


def _parsed(
    data: bytes, expected: StateFormat, name: str
) -> tuple[RetNetState | None, tuple[int, ...]]:
    """The state and the unread tokens of a file, checked."""
    header = _header(data, name)
    _check_header(header, expected, name)
    try:
        # Copied to where torch has its tensors: some products of numbers that lie less aligned
        # round differently.
        tensors = {key: tensor.clone() for key, tensor in load(data).items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"{name} is damaged or not safetensors ({error}); {_REMEDY}"
        ) from error
    _check_values(tensors, expected, name)
    unread = tuple(tensors.pop("unread", torch.empty(0)).tolist())
    if not tensors:
        return None, unread
    layers = tuple(tensors[layer] for layer in _layer_names(expected))
    return RetNetState(layers, tensors["position"]), unread


def _header(data: bytes, name: str) -> Header:
    return parse_header(data[: 8 + _MOST_HEADER_BYTES], _MOST_HEADER_BYTES, name)


def _check_header(header: Header, expected: StateFormat, name: str) -> None:
    """CheckpointError for what isn't a state or conversation of the expected model."""
    if header.metadata.get("format") != STATE_FORMAT:
        raise CheckpointError(f"{name} is not a saved state; expected a file written by save_state")
    if header.metadata.get("fingerprint") != expected.fingerprint:
        raise CheckpointError(
            f"{name} is a state of another model (fingerprint "
            f"{header.metadata.get('fingerprint')}, this one is {expected.fingerprint}); "
            "load it with the model that wrote it"
        )
    found = header.tensors
    # A conversation of which nothing has been read has no state.
    layers = [] if set(found) == {"unread"} else _layer_names(expected)
    counts = [*(["position"] if layers else []), *(["unread"] if "unread" in found else [])]
    for wrong, what in (
        ([key for key in (*layers, *counts) if key not in found], "is missing in it"),
        (sorted(found.keys() - {*layers, *counts}), "has no place in it"),
    ):
        if wrong:
            raise CheckpointError(f"{name} is damaged: {', '.join(wrong)} {what}; {_REMEDY}")
    for key in counts:
        _check_entry(found[key], torch.int64, found[key].shape[:1] or (1,), f"{name}: {key}")
    for key in layers:
        shape = (*found["position"].shape, *expected.layer_shape)
        _check_entry(found[key], expected.dtype, shape, f"{name}: {key}")
    if "unread" in found and found["unread"].shape[0] > MOST_UNREAD:
        raise CheckpointError(
            f"{name} has {found['unread'].shape[0]} unread tokens, expected at most {MOST_UNREAD}; "
            "have the model read them first"
        )


def _check_entry(entry: TensorEntry, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    if (entry.dtype, entry.shape) != (_DTYPE_NAMES[dtype], shape):
        raise CheckpointError(
            f"{name} is {entry.dtype} {list(entry.shape)}, expected {_DTYPE_NAMES[dtype]} "
            f"{list(shape)}; it is damaged, or of a model of another dtype"
        )
    if entry.end - entry.start != dtype.itemsize * prod(shape):
        raise CheckpointError(
            f"{name} is damaged: it has {entry.end - entry.start} bytes; {_REMEDY}"
        )


def _check_values(tensors: Mapping[str, Tensor], expected: StateFormat, name: str) -> None:
    limits = {"position": _MOST_TOKENS, "unread": expected.vocab_size}
    for key, tensor in tensors.items():
        if key not in limits and not all_finite(tensor):
            raise CheckpointError(f"{name} is damaged: {key} holds what is no number; {_REMEDY}")
        if key in limits and tensor.numel():
            least, most = (int(end) for end in tensor.aminmax())
            if least < 0 or most >= limits[key]:
                raise CheckpointError(
                    f"{name} is damaged: {key} must be in [0, {limits[key]}), got {least} to "
                    f"{most}; {_REMEDY}"
                )


def _layer_names(expected: StateFormat) -> list[str]:
    return [f"layers.{i}" for i in range(expected.num_layers)]


def _tensors(state: RetNetState) -> dict[str, Tensor]:
    tensors = {f"layers.{i}": layer for i, layer in enumerate(state.layers)}
    tensors["position"] = state.position
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _metadata(fingerprint: str, created: int | None = None) -> dict[str, str]:
    began = {} if created is None else {"created": str(created)}
    return {"format": STATE_FORMAT, "fingerprint": fingerprint, **began}


def _created(header: Header) -> int | None:
    text = header.metadata.get("created", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 13 else None


def _moved(state: RetNetState, device: torch.device | str) -> RetNetState:
    layers = tuple(layer.to(device) for layer in state.layers)
    return RetNetState(layers, state.position.to(device))


def _write(path: Path, data: bytes) -> None:
    try:
        replace_files({path: lambda aside: aside.write_bytes(data)})
    except OSError as error:
        raise CheckpointError(f"could not save the state to {path}: {error}") from error


def _read(path: Path, most_bytes: int | None = None) -> bytes:
    """A file's bytes; CheckpointError where there are more than may be."""
    try:
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}")
        with path.open("rb") as file:
            data = file.read() if most_bytes is None else file.read(most_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if most_bytes is not None and len(data) > most_bytes:
        raise CheckpointError(
            f"{path} has more than {most_bytes:,} bytes, which no conversation takes; {_REMEDY}"
        )
    return data
