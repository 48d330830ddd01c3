"""Which dtype the matmuls of a run use."""

import time
from dataclasses import dataclass

import torch

from retnet.train.config import Precision

# Autocast adds casts around every matmul; a gain below this is eaten by them, or is noise.
_WORTHWHILE_GAIN = 1.3
_REPEATS = 5


@dataclass(frozen=True)
class ChosenPrecision:
    """autocast_dtype: what to run matmuls in, None for fp32 throughout; reason: why, in words."""

    autocast_dtype: torch.dtype | None
    reason: str

    @property
    def name(self) -> str:
        """ "fp32" or "bf16"."""
        return "fp32" if self.autocast_dtype is None else "bf16"


def choose_precision(
    asked: Precision, device: torch.device, *, num_rows: int, width: int
) -> ChosenPrecision:
    """The precision asked for; for "auto" the one in which the model's products are faster.

    num_rows: tokens in a step; width: of the model.
    """
    if asked != "auto":
        return ChosenPrecision(torch.bfloat16 if asked == "bf16" else None, "as asked")
    if device.type not in ("cpu", "cuda"):
        return ChosenPrecision(None, f"bf16 is not tried on {device.type}")
    rows = min(num_rows, 4096)
    seconds = {
        dtype: _matmul_s(dtype, device, rows, width) for dtype in (torch.float32, torch.bfloat16)
    }
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    dtype = torch.bfloat16 if gain >= _WORTHWHILE_GAIN else None
    return ChosenPrecision(dtype, f"bf16 matmuls run at {gain:.2f} times the speed of fp32 here")


def _matmul_s(dtype: torch.dtype, device: torch.device, num_rows: int, width: int) -> float:
    """The shortest of a few times of one product [num_rows, width] x [width, 4 width]."""
    left = torch.ones(num_rows, width, dtype=dtype, device=device)
    right = torch.ones(width, 4 * width, dtype=dtype, device=device)
    times = []
    for _ in range(_REPEATS + 1):
        _synchronize(device)
        start = time.perf_counter()
        left @ right
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first one sets the library up


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
