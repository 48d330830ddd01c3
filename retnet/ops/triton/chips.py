"""Which chip it is, and on which the kernels were seen to be right."""

import functools
import json
from pathlib import Path

import torch
import triton
from triton import knobs

from retnet.ops.triton.configs import SHARED_BYTES

# Triton's interpreter, which computes the kernels on the CPU: for tests.
INTERPRETED = bool(knobs.runtime.interpret)


def arch_of(device: torch.device) -> str:
    """A name such as "sm_90" or "gfx942"; in the interpreter that of an H200."""
    if device.type == "cpu":
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    name = getattr(properties, "gcnArchName", "")
    return name.partition(":")[0] if name else f"sm_{properties.major}{properties.minor}"


def why_no_kernels(device: torch.device) -> str | None:
    """Why the table of configurations has nothing for a chip; None where it has."""
    arch = arch_of(device)
    if arch in SHARED_BYTES:
        return None
    return (
        f"there are no configurations for {arch}, only for {', '.join(SHARED_BYTES)}; pass "
        "backend='torch'"
    )


def is_verified(device: torch.device) -> bool:
    """Whether benchmarks/results has a record of the kernels' correctness with this kind of chip
    and this Triton; verified.json repeats what these say.
    """
    return [arch_of(device), triton.__version__] in _verified()


@functools.cache
def _verified() -> list[list[str]]:
    return list(json.loads(Path(__file__).with_name("verified.json").read_text(encoding="utf-8")))
