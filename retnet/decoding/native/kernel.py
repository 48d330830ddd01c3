"""A step of many tokens in C++: the whole model in one call.

A row's bits depend neither on its neighbours nor on the number of threads: each sum has one order.
The structures here have their like in decode.cpp, rows.h and vectors.h.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.decoding.large_pages import LargePages
from retnet.decoding.native.build import library
from retnet.decoding.reading import Reading
from retnet.decoding.weights import LayerWeights, Matrix, Weights
from retnet.model import RetNet, RetNetState
from retnet.position import log_decays, rotary_angles

DTYPES = (torch.float32, torch.bfloat16)
INSTRUCTIONS = ("plain", "AVX-512", "AMX")

_UNIT = 16  # outputs that lie together
_INPUTS = 64  # a matrix's rows are a multiple of this
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_ACTIVATIONS = {"gelu": 0, "swiglu": 1, "geglu": 2}
_SCORE_NORMS = {"none": 0, "decay": 1, "paper": 2}


def unsupported(model: RetNet) -> str | None:
    """Why the native kernel cannot do a model; None where it can."""
    embedding = model.backbone.embed_tokens.weight
    if embedding.device.type == "cpu" and embedding.dtype in DTYPES:
        return None
    return (
        "the native kernel does fp32 and bf16 models on the CPU, "
        f"got {embedding.dtype} on {embedding.device}"
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("is_rms", ctypes.c_int64),
    )


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "tail", "bias", "scales", "sums")),
        *((name, ctypes.c_int64) for name in ("num_outputs", "num_inputs", "num_given", "kind")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("mixer_norm", _Norm),
        ("projection", _Matrix),
        ("head_norm", _Norm),
        ("output", _Matrix),
        ("feed_forward_norm", _Norm),
        ("up", _Matrix),
        ("inner_norm", _Norm),
        ("down", _Matrix),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "vocab_size",
                "width",
                "num_layers",
                "num_heads",
                "key_size",
                "value_size",
                "ffn_size",
                "activation",
                "score_norm",
                "pairs_are_halves",
                "embedding_kind",
            )
        ),
        ("embedding", ctypes.c_void_p),
        ("embedding_norm", _Norm),
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", _Norm),
        ("head", _Matrix),
        ("log_decay", ctypes.c_void_p),
        ("frequencies", ctypes.c_void_p),
    )


class _Reading(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_void_p),
        ("num_tokens", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("wanted", ctypes.c_void_p),
        ("num_wanted", ctypes.c_int64),
    )


class NativeKernel:
    """The step of a model's weights in C++.

    Args:
        machine: flags for the compiler that say what processor it compiles for.

    Raises:
        ValueError: for a model that isn't on the CPU, or neither fp32 nor bf16.
        BuildError: without a compiler.
    """

    name = "native"

    def __init__(
        self, model: RetNet, weights: Weights, machine: Sequence[str] = ("-march=native",)
    ) -> None:
        why_not = unsupported(model)
        if why_not is not None:
            raise ValueError(f"{why_not}; choose the torch kernel")
        self._library = library(tuple(machine))
        self._library.retnet_room_bytes.restype = ctypes.c_int64
        self._backbone, self._vocab_size = model.backbone, model.config.vocab_size
        self._structure = _Builder().model(model, weights)
        self._room = torch.empty(0, dtype=torch.uint8, device="cpu")

    @property
    def instructions(self) -> str:
        """What its products are made of."""
        return INSTRUCTIONS[self._library.retnet_instructions()]

    def settle_(self, state: RetNetState, rows: Tensor) -> None:
        """Nothing to do: a state always holds what was read."""

    def step_(self, reading: Reading, state: RetNetState) -> Tensor:
        """See `Decoder.step_`; nothing is checked here but the tokens."""
        tokens, rows = reading.tokens.contiguous(), reading.rows.contiguous()
        counts, wanted = (_integers(x) for x in (reading.counts, reading.wanted))
        # Whatever torch's default device and dtype are.
        shape = (len(wanted), self._vocab_size)
        logits = torch.empty(shape, dtype=torch.float32, device="cpu")
        states = [layer.data_ptr() for layer in state.layers]
        structure = _Reading(
            tokens=tokens.data_ptr(),
            num_tokens=len(tokens),
            rows=rows.data_ptr(),
            counts=ctypes.addressof(counts),
            num_rows=len(rows),
            wanted=ctypes.addressof(wanted),
            num_wanted=len(wanted),
        )
        failed = self._library.retnet_step(
            ctypes.byref(self._structure.model),
            ctypes.byref(structure),
            ctypes.c_void_p(state.position.data_ptr()),
            (ctypes.c_void_p * len(states))(*states),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_void_p(self._memory(len(tokens))),
            ctypes.c_int64(torch.get_num_threads()),
        )
        if failed:
            self._backbone.embed(tokens)  # raises the error of tokens that are not there
        return logits

    def _memory(self, count: int) -> int:
        """The address of what a step of so many tokens works on, at a multiple of 64."""
        reference = ctypes.byref(self._structure.model)
        wanted = self._library.retnet_room_bytes(reference, ctypes.c_int64(count))
        if len(self._room) < wanted:
            self._room = LargePages().zeros((wanted,), torch.uint8)
        return self._room.data_ptr()


def _integers(numbers: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(numbers))(*numbers)


class _Structure:
    """A model as C++ sees it, and all that its pointers point to."""

    def __init__(self, model: _Model, kept: Sequence[object]) -> None:
        self.model, self._kept = model, kept


class _Builder:
    """Makes the structures of a model's weights, and keeps what they point to."""

    def __init__(self) -> None:
        self._kept: list[object] = []

    def model(self, model: RetNet, weights: Weights) -> _Structure:
        """All of a model."""
        config, backbone = model.config, model.backbone
        layers = (_Layer * config.num_layers)(*map(self._layer, weights.layers))
        self._kept.append(layers)
        embedding = backbone.embed_tokens.weight.detach()
        one = torch.ones(1, dtype=torch.float64, device="cpu")
        structure = _Model(
            vocab_size=config.vocab_size,
            width=config.d_model,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            key_size=config.key_size,
            value_size=config.value_size,
            ffn_size=config.ffn_size,
            activation=_ACTIVATIONS[config.feed_forward],
            score_norm=_SCORE_NORMS[config.score_norm],
            pairs_are_halves=config.rotary_pairing == "halves",
            embedding_kind=_KINDS[embedding.dtype],
            embedding=self._pointer(embedding),
            embedding_norm=self._norm(backbone.embedding_norm),
            layers=layers,
            norm=self._norm(weights.norm),
            head=self._matrix(weights.head),
            log_decay=self._pointer(log_decays(config.decay, config.num_heads)),
            frequencies=self._pointer(
                rotary_angles(one, config.key_size, config.rotary_frequencies)
            ),
        )
        return _Structure(structure, self._kept)

    def _layer(self, layer: LayerWeights) -> _Layer:
        return _Layer(
            mixer_norm=self._norm(layer.mixer_norm),
            projection=self._matrix(layer.projection),
            head_norm=self._norm(layer.head_norm),
            output=self._matrix(layer.output),
            feed_forward_norm=self._norm(layer.feed_forward_norm),
            up=self._matrix(layer.up),
            inner_norm=self._norm(layer.inner_norm),
            down=self._matrix(layer.down),
        )

    def _norm(self, norm: nn.Module | None) -> _Norm:
        if norm is None:
            return _Norm()
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        is_rms = isinstance(norm, nn.RMSNorm)
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        return _Norm(
            weight=self._floats(norm.weight),
            bias=self._floats(bias),
            size=norm.normalized_shape[0],
            eps=norm.eps,
            is_rms=is_rms,
        )

    def _matrix(self, matrix: Matrix) -> _Matrix:
        integers = matrix.integers
        weight = matrix.weight if integers is None else integers.values
        num_outputs, num_given = weight.shape
        weight = F.pad(weight, (0, -num_given % _INPUTS)) if num_given % _INPUTS else weight
        rest = weight[num_outputs - num_outputs % _UNIT :]
        structure = _Matrix(
            weight=self._pointer(weight.contiguous()),
            tail=self._pointer(F.pad(rest, (0, 0, 0, _UNIT - len(rest)))),
            bias=self._floats(matrix.bias),
            num_outputs=num_outputs,
            num_inputs=weight.shape[1],
            num_given=num_given,
            kind=_KINDS[weight.dtype],
        )
        if integers is not None:
            sums = F.pad(weight.sum(dim=1, dtype=torch.int32), (0, -num_outputs % _UNIT))
            structure.sums, structure.scales = self._pointer(sums), self._floats(integers.scales)
        return structure

    def _floats(self, x: Tensor | None) -> int | None:
        return None if x is None else self._pointer(x.detach().float().contiguous())

    def _pointer(self, x: Tensor) -> int:
        self._kept.append(x)
        return x.data_ptr()
