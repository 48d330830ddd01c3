"""Which dtype the matmuls of a run use."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from retnet.train.config import Precision

# Autocast adds casts around every matmul; a gain below this is eaten by them, or is noise.
_WORTHWHILE_GAIN = 1.3
_REPEATS = 8
_ROWS, _WIDTH = 1024, 512


@dataclass(frozen=True)
class ChosenPrecision:
    """autocast_dtype: what to run matmuls in, None for fp32 throughout; reason: why, in words."""

    autocast_dtype: torch.dtype | None
    reason: str

    @property
    def name(self) -> str:
        """Its name in a configuration: fp32 or bf16."""
        return "fp32" if self.autocast_dtype is None else "bf16"


def choose_precision(asked: Precision, device: torch.device) -> ChosenPrecision:
    """The precision asked for; for "auto" the one in which matmuls are faster on this device."""
    if asked != "auto":
        return ChosenPrecision(torch.bfloat16 if asked == "bf16" else None, "as asked")
    if device.type not in ("cpu", "cuda"):
        return ChosenPrecision(None, f"bf16 is not tried on {device.type}")
    gain = _bf16_gain(device)
    dtype = torch.bfloat16 if gain >= _WORTHWHILE_GAIN else None
    return ChosenPrecision(dtype, f"bf16 runs at {gain:.2f} times the speed of fp32 here")


def _bf16_gain(device: torch.device) -> float:
    """How many times faster a product is in bf16 than in fp32.

    The shortest of several times in turn: other programs only ever make one longer.
    """
    dtypes = (torch.float32, torch.bfloat16)
    left = {dtype: torch.ones(_ROWS, _WIDTH, dtype=dtype, device=device) for dtype in dtypes}
    right = {dtype: torch.ones(_WIDTH, 4 * _WIDTH, dtype=dtype, device=device) for dtype in dtypes}
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}
    for _ in range(_REPEATS):
        for dtype in dtypes:
            times[dtype].append(_matmul_s(left[dtype], right[dtype]))
    return min(times[torch.float32]) / min(times[torch.bfloat16])


def _matmul_s(left: Tensor, right: Tensor) -> float:
    _synchronize(left.device)
    start = time.perf_counter()
    left @ right
    _synchronize(left.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
