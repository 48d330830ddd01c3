"""The contenders of bench_retention.py: ours, torchscale's, and softmax attention.

Queries and keys come already rotated and values already projected, in the dtype and the order of
axes that each implementation works in: nobody pays for somebody else's layout.
"""

import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from retnet.ops import retention_chunkwise, retention_parallel, retention_recurrent

DTYPES = (torch.float32, torch.bfloat16)
FORWARD, BOTH = PASSES = ("forward", "forward+backward")
UNLIMITED = 2**63


@dataclass(frozen=True)
class Shape:
    """B, T, H, K and V of one measurement."""

    batch_size: int
    num_tokens: int
    num_heads: int
    key_size: int
    value_size: int

    @property
    def title(self) -> str:
        """The five numbers with their letters."""
        numbers = zip("BTHKV", astuple(self), strict=True)
        return " ".join(f"{letter}={number}" for letter, number in numbers)


@dataclass(frozen=True)
class Operation:
    """A function of tensors that all want a gradient, and those tensors."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def forward(self) -> Tensor:
        """The output alone, with nothing kept for a backward pass."""
        with torch.no_grad():
            return self.function(*self.inputs)

    def forward_and_backward(self, grad_out: Tensor) -> tuple[Tensor, ...]:
        """The output, then from it the gradients of all inputs."""
        return torch.autograd.grad(self.function(*self.inputs), self.inputs, grad_out)


@dataclass(frozen=True)
class Contender:
    """One implementation. `max_tokens`: the longest T at which it is worth waiting for."""

    name: str
    build: Callable[[Shape, torch.dtype], Operation]
    dtypes: tuple[torch.dtype, ...] = DTYPES
    max_tokens: int = UNLIMITED
    passes: tuple[str, ...] = PASSES

    def call(self, shape: Shape, dtype: torch.dtype, kind: str) -> Callable[[], object]:
        """The pass of that kind, ready to be timed: all that goes into it exists."""
        operation = self.build(shape, dtype)
        if kind == FORWARD:
            return operation.forward
        # ones_like keeps the order of axes that the contender's output has.
        return partial(operation.forward_and_backward, torch.ones_like(operation.forward()))


def contenders() -> list[Contender]:
    """Every contender that can run here. `missing` tells of those that cannot."""
    ours = [
        Contender("ours chunkwise torch", _ours(retention_chunkwise, "torch")),
        Contender(
            "ours chunkwise reference", _ours(retention_chunkwise, "reference"), max_tokens=8192
        ),
        Contender("ours parallel", _ours(retention_parallel, "auto"), max_tokens=512),
        # Its backward pass keeps a state for every token: the form exists to decode.
        Contender(
            "ours recurrent", _ours(retention_recurrent, "auto"), max_tokens=512, passes=(FORWARD,)
        ),
    ]
    torchscale = [
        Contender(f"torchscale chunk {size}", partial(_torchscale, size)) for size in (512, 128)
    ]
    attention = Contender("sdpa causal, V = K", _attention, max_tokens=8192)
    return [*ours, *(torchscale if torchscale_is_installed() else []), attention]


def missing() -> list[str]:
    """A sentence for each contender that is not installed."""
    if torchscale_is_installed():
        return []
    return [
        "torchscale is missing: its rows and ratios are left out. "
        "To have them: pip install --no-deps torchscale==0.3.0 fairscale==0.4.13"
    ]


def torchscale_is_installed() -> bool:
    """Whether torchscale, and the fairscale that it imports, are there."""
    return find_spec("torchscale") is not None and find_spec("fairscale") is not None


def _decays(num_heads: int) -> Tensor:
    return torch.log1p(-(2.0 ** (-5 - torch.arange(num_heads, dtype=torch.float64)))).float()


def _wanting_gradients(*tensors: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype).requires_grad_() for tensor in tensors)


def _ours(
    form: Callable[..., tuple[Tensor, Tensor]], backend: str
) -> Callable[[Shape, torch.dtype], Operation]:
    def build(shape: Shape, dtype: torch.dtype) -> Operation:
        rows = (shape.batch_size, shape.num_tokens, shape.num_heads)
        q, k = (
            torch.randn(*rows, shape.key_size),
            torch.randn(*rows, shape.key_size) * shape.key_size**-0.5,
        )
        inputs = _wanting_gradients(q, k, torch.randn(*rows, shape.value_size), dtype=dtype)
        log_decay = _decays(shape.num_heads)
        return Operation(lambda q, k, v: form(q, k, v, log_decay, backend=backend)[0], inputs)

    return build


def _attention(shape: Shape, dtype: torch.dtype) -> Operation:
    """Values only as wide as keys: with wider ones torch has no fused path on a CPU."""
    rows = (shape.batch_size, shape.num_heads, shape.num_tokens, shape.key_size)
    inputs = _wanting_gradients(*(torch.randn(rows) for _ in range(3)), dtype=dtype)
    return Operation(partial(scaled_dot_product_attention, is_causal=True), inputs)


def _torchscale(chunk_size: int, shape: Shape, dtype: torch.dtype) -> Operation:
    """`MultiScaleRetention.chunk_recurrent_forward` of torchscale 0.3.0, nothing around it."""
    retention, relative_position = _import_torchscale()
    heads = (shape.batch_size, shape.num_heads, shape.num_tokens, shape.key_size)
    width = shape.num_heads * shape.value_size
    values = torch.randn(shape.batch_size, shape.num_tokens, width)
    q, k = torch.randn(heads), torch.randn(heads) * shape.key_size**-0.5
    settings = SimpleNamespace(
        decoder_embed_dim=shape.num_heads * shape.key_size,
        decoder_retention_heads=shape.num_heads,
        recurrent_chunk_size=min(chunk_size, shape.num_tokens),
    )
    _, masks = relative_position(settings)(shape.num_tokens, chunkwise_recurrent=True)
    masks = tuple(mask.to(dtype) for mask in masks)
    layer = SimpleNamespace(
        num_heads=shape.num_heads, key_dim=shape.key_size, head_dim=shape.value_size
    )
    function = partial(retention.chunk_recurrent_forward, layer)
    return Operation(
        lambda q, k, v: function(q, k, v, masks), _wanting_gradients(q, k, values, dtype=dtype)
    )


def _import_torchscale() -> tuple[Any, Any]:
    """Its retention layer and its position table."""
    stand_in_for_timm()
    from torchscale.architecture.retnet import RetNetRelPos
    from torchscale.component.multiscale_retention import MultiScaleRetention

    return MultiScaleRetention, RetNetRelPos


def stand_in_for_timm() -> None:
    """torchscale imports a function of timm that it does not call: an empty timm does."""
    if "timm" in sys.modules or find_spec("timm") is not None:
        return
    sys.modules.update(
        {name: ModuleType(name) for name in ("timm", "timm.models", "timm.models.layers")}
    )
    vars(sys.modules["timm.models.layers"])["drop_path"] = lambda x, *_: x
