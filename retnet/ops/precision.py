"""Which arithmetic a device is fast at."""

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype that retention's products of tensors like x are computed in.

    That of x, but where a CPU's fp16 or bf16 products are no faster than its fp32 ones, they are
    done in fp32, which is as quick and more exact.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float16, torch.bfloat16):
        return x.dtype
    return x.dtype if x.dtype == torch.bfloat16 and cpu_has_fast_bf16() else torch.float32


@functools.cache
def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than fp32 ones.

    True with AMX tiles, and with AVX512-BF16 on AMD (Zen 4 and later: two to four times fp32).
    Intel cores without AMX issue the AVX512-BF16 dot product at half the rate of fp32's fused
    multiply-add (0.55 of fp32's speed in all).
    """
    features = torch.cpu.get_capabilities()
    if features.get("amx_bf16", False):
        return True
    return features.get("avx512_bf16", False) and "AMD" in features.get("cpu_name", "")


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Inside, products keep the dtype they are given: retention chooses its own precision."""
    if not _autocast_is_on(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def cast_for_products(x: Tensor) -> Tensor:
    """x in the dtype that autocast, where it is on, casts the operands of products to.

    For what several products read: each would cast it, and keep its own copy for the backward pass.
    """
    if x.dtype == torch.float64 or not _autocast_is_on(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _autocast_is_on(device_type: str) -> bool:
    available = torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)
