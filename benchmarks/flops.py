"""Counting the arithmetic that a call really executes, whoever wrote it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.baddbmm_}
ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward


def matmul_flops(call: Callable[[], object]) -> dict[torch.dtype, int]:
    """Floating-point operations of the matrix products that `call` executes, by operand dtype.

    Causal attention counts its lower half.
    """
    counter = _Counter()
    with counter:
        call()
    return dict(counter.flops)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        packet = func.overloadpacket
        if packet in PRODUCTS:
            a, b = tensors[-2:]
            self.flops[a.dtype] += 2 * a.numel() * b.shape[-1]
        elif packet == ATTENTION:
            self.flops[tensors[0].dtype] += _causal_attention_flops(*tensors[:3], products=2)
        elif packet == ATTENTION_BACKWARD:
            self.flops[tensors[0].dtype] += _causal_attention_flops(*tensors[1:4], products=5)
        return func(*args, **(kwargs or {}))


def _causal_attention_flops(q: Tensor, k: Tensor, v: Tensor, *, products: int) -> int:
    """q: [B, H, T, K]; its own width stands for the value width too, which must equal it."""
    assert q.shape == k.shape == v.shape
    return products * 2 * q.numel() * q.shape[2] // 2
