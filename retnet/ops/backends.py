"""Who computes a form of retention: by name, or the fastest that is known to be right here."""

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from retnet.ops import reference, torch_chunkwise

Form = Literal["parallel", "recurrent", "chunkwise"]
Retention = Callable[..., tuple[Tensor, Tensor]]
Function = TypeVar("Function", bound=Callable[..., Any])

# By form and name; the first is what "auto" takes, but for kernels that were verified. None for
# what is imported when it is first asked for.
_BACKENDS: dict[Form, dict[str, Retention | None]] = {
    "parallel": {"reference": reference.retention_parallel},
    "recurrent": {"reference": reference.retention_recurrent},
    "chunkwise": {
        "torch": torch_chunkwise.retention_chunkwise,
        "reference": reference.retention_chunkwise,
        "triton": None,
        "fla": None,
    },
}
_OLDEST_TRITON = (3, 4)


def _constant_when_compiling(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`, which imports all of the compiler, and with
    it Triton.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def available_backends(form: Form) -> tuple[str, ...]:
    """The names that `backend` may have for a form; `why_not` tells whether one can run."""
    return tuple(_BACKENDS[form])


@_constant_when_compiling
def choose_backend(form: Form, backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of who computes a form of tensors on a device: `backend` itself, or for "auto" our
    kernels where they were verified on this kind of chip, else what runs anywhere.

    Raises:
        ValueError: for a name that the form hasn't, or that can't run here, with the reason.
    """
    names = available_backends(form)
    if backend == "auto":
        return "triton" if "triton" in names and _is_verified(device, dtype) else names[0]
    if backend not in names:
        choices = ", ".join(map(repr, ("auto", *names)))
        raise ValueError(f"backend of the {form} form must be one of {choices}, got {backend!r}")
    reason = why_not(backend, device, dtype)
    if reason:
        raise ValueError(f"backend {backend!r} can't run here: {reason}")
    return backend


@_constant_when_compiling
def prefers_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" takes our kernels: they were verified on this kind of chip."""
    return _is_verified(device, dtype)


def retention_of(form: Form, backend: str) -> Retention:
    """The function of a backend that `choose_backend` named."""
    if backend == "triton":
        from retnet.ops.triton import chunkwise

        return chunkwise.retention_chunkwise
    if backend == "fla":
        from retnet.ops import fla

        return fla.retention_chunkwise
    known = _BACKENDS[form][backend]
    assert known is not None
    return known


def why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend can't compute with tensors of a type on a device; None where it can."""
    if backend not in ("triton", "fla"):
        return None
    if find_spec("triton") is None:
        return "triton is not installed; it comes with torch's builds for GPUs"
    found = version("triton")
    if tuple(map(int, found.split(".")[:2])) < _OLDEST_TRITON:
        oldest = ".".join(map(str, _OLDEST_TRITON))
        return f"triton is {found}, and the kernels need {oldest} or newer"
    if backend == "fla" and find_spec("fla") is None:
        return "fla is not installed: pip install fla-core"
    from retnet.ops.triton import chips

    if device.type != "cuda" and not (chips.INTERPRETED and backend == "triton"):
        return f"it needs a GPU, and q is on {device}; pass backend='auto', or move the tensors"
    if dtype == torch.float64:
        return f"it has no kernels for {dtype}; pass backend='torch'"
    return None if backend == "fla" else chips.why_no_kernels(device)


def _is_verified(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our kernels were seen to be right on this kind of chip with this Triton."""
    if device.type != "cuda" or why_not("triton", device, dtype):
        return False
    from retnet.ops.triton import chips

    return chips.is_verified(device)
