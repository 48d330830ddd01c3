"""Where computations run: devices by name, and how many threads of a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from retnet.ops.precision import cpu_has_fast_bf16


def find_device(name: str) -> torch.device:
    """The device of a name; for "auto" cuda where there is one. ValueError if it can't be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r} cannot be used here: {reason}; try 'auto' or 'cpu'"
        ) from error
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """What weights are best kept in: for "auto" bf16 where a device is fast at it, else fp32."""
    if name == "auto":
        is_fast = device.type != "cpu" or cpu_has_fast_bf16()
        return torch.bfloat16 if is_fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """CPU threads for torch inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
