"""Every bad argument is a ValueError that says what came, what was expected and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from retnet import ops
from retnet.ops import backends
from retnet.ops.backends import why_not

FORMS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "parallel": ops.retention_parallel,
    "recurrent": ops.retention_recurrent,
    "chunkwise": ops.retention_chunkwise,
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def good(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments that pass: B=2, T=5, H=3, K=4, V=6."""
    return {
        "q": torch.zeros(2, 5, 3, 4, dtype=dtype),
        "k": torch.zeros(2, 5, 3, 4, dtype=dtype),
        "v": torch.zeros(2, 5, 3, 6, dtype=dtype),
        "log_decay": torch.tensor([-0.5, -0.1, 0.0]),
        "state": torch.zeros(2, 3, 4, 6),
        "segment_ids": torch.zeros(2, 5, dtype=torch.int64),
    }


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "q of three dimensions": (
        {"q": torch.zeros(5, 3, 4)},
        r"q and k must be \[B, T, H, K\] of one shape, got \[5, 3, 4\] and \[2, 5, 3, 4\]",
    ),
    "q and k that differ": (
        {"k": torch.zeros(2, 5, 3, 8)},
        r"q and k must be .* got \[2, 5, 3, 4\] and \[2, 5, 3, 8\]",
    ),
    "heads before time": (
        {"v": torch.zeros(2, 3, 5, 6)},
        r"v must be \[B, T, H, V\] with q's B, T, H = \[2, 5, 3\], got \[2, 3, 5, 6\]",
    ),
    "v of three dimensions": ({"v": torch.zeros(2, 5, 3)}, r"v must be .* got \[2, 5, 3\]"),
    "v of another length": ({"v": torch.zeros(2, 4, 3, 6)}, r"v must be .* got \[2, 4, 3, 6\]"),
    "mixed dtypes": (
        {"v": torch.zeros(2, 5, 3, 6, dtype=torch.float64)},
        r"one float dtype, got torch.float32, torch.float32, torch.float64; cast",
    ),
    "k on another device": (
        {"k": torch.zeros(2, 5, 3, 4, device="meta")},
        r"k must be on q's device cpu, got meta; move it",
    ),
    "v on another device": (
        {"v": torch.zeros(2, 5, 3, 6, device="meta")},
        r"v must be on q's device cpu, got meta; move it",
    ),
    "state on another device": (
        {"state": torch.zeros(2, 3, 4, 6, device="meta")},
        r"state must be on q's device cpu, got meta",
    ),
    "segment_ids on another device": (
        {"segment_ids": torch.zeros(2, 5, dtype=torch.int64, device="meta")},
        r"segment_ids must be on q's device cpu, got meta",
    ),
    "log_decay on another device": (
        {"log_decay": torch.zeros(3, device="meta")},
        r"log_decay must be on the device cpu or the CPU, got meta",
    ),
    "log_decay of too many heads": (
        {"log_decay": torch.zeros(4)},
        r"log_decay must be \[H\] = \[3\], got \[4\]",
    ),
    "one log_decay for all heads": (
        {"log_decay": torch.tensor(-0.1)},
        r"log_decay must be \[H\] = \[3\], got \[\]",
    ),
    "log_decay in bf16": (
        {"log_decay": torch.zeros(3, dtype=torch.bfloat16)},
        r"log_decay must be fp32 or fp64.*torch.bfloat16",
    ),
    "gamma for log_decay": (
        {"log_decay": torch.tensor([0.97, 0.98, 0.99])},
        r"log_decay must be <= 0, got max 0.99; pass log\(gamma\), not gamma",
    ),
    "log_decay that is no number": (
        {"log_decay": torch.tensor([-0.1, float("nan"), -0.1])},
        r"log_decay must be .* got .*nan",
    ),
    "gamma of zero": (
        {"log_decay": torch.tensor([-0.1, -float("inf"), -0.1])},
        r"log_decay must be finite, got min -inf; the smallest gamma must be above 0",
    ),
    "state of other sizes": (
        {"state": torch.zeros(2, 3, 6, 4)},
        r"state must be \[B, H, K, V\] = \[2, 3, 4, 6\], got \[2, 3, 6, 4\]",
    ),
    "state of another batch": (
        {"state": torch.zeros(1, 3, 4, 6)},
        r"state must be .* = \[2, 3, 4, 6\], got \[1, 3, 4, 6\]",
    ),
    "state in bf16": (
        {"state": torch.zeros(2, 3, 4, 6, dtype=torch.bfloat16)},
        r"state must be torch.float32 for torch.float32 inputs, got torch.bfloat16",
    ),
    "state in fp64": (
        {"state": torch.zeros(2, 3, 4, 6, dtype=torch.float64)},
        r"state must be torch.float32 for torch.float32 inputs, got torch.float64",
    ),
    "segment_ids of floats": (
        {"segment_ids": torch.zeros(2, 5)},
        r"segment_ids must be integers \[B, T\] = \[2, 5\], got torch.float32 \[2, 5\]",
    ),
    "segment_ids of another length": (
        {"segment_ids": torch.zeros(2, 6, dtype=torch.int64)},
        r"segment_ids must be integers \[B, T\] = \[2, 5\], got torch.int64 \[2, 6\]",
    ),
    "one row of segment_ids": (
        {"segment_ids": torch.zeros(5, dtype=torch.int64)},
        r"segment_ids must be .* got torch.int64 \[5\]",
    ),
    "an unknown backend": ({"backend": "cuda"}, r"backend .* must be one of 'auto', .*got 'cuda'"),
}


@every_form
def test_good_arguments_pass(form: Callable[..., tuple[Tensor, Tensor]]) -> None:
    out, state = form(**good())
    assert out.shape == (2, 5, 3, 6)
    assert state.shape == (2, 3, 4, 6)


@pytest.mark.parametrize("bad", BAD)
@every_form
def test_bad_argument(form: Callable[..., tuple[Tensor, Tensor]], bad: str) -> None:
    changes, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        form(**{**good(), **changes})


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
@every_form
def test_no_float_dtype(form: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"q, k, v must share one float dtype, got {dtype}"):
        form(**good(dtype))


@every_form
def test_fp64_inputs_need_a_fp64_state(form: Callable[..., tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(ValueError, match=r"state must be torch.float64 for torch.float64 inputs"):
        form(**good(torch.float64))


@every_form
def test_a_state_of_the_inputs_dtype_is_refused(
    form: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """A state kept in bf16 would forget; it stays fp32 beside bf16 inputs."""
    arguments = good(torch.bfloat16)
    with pytest.raises(ValueError, match=r"state must be torch.float32 for torch.bfloat16 inputs"):
        form(**{**arguments, "state": arguments["state"].bfloat16()})


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, "64", None])
def test_chunk_size(chunk_size: object) -> None:
    with pytest.raises(
        ValueError, match=f"chunk_size must be a positive integer, got {chunk_size!r}"
    ):
        ops.retention_chunkwise(**good(), chunk_size=chunk_size)


def test_backends_have_names() -> None:
    """Every name that is listed can be chosen, or says why not; the first is what "auto" takes."""
    assert ops.available_backends("chunkwise")[0] == "torch"
    forms: dict[ops.Form, Callable[..., tuple[Tensor, Tensor]]] = {
        "parallel": ops.retention_parallel,
        "recurrent": ops.retention_recurrent,
        "chunkwise": ops.retention_chunkwise,
    }
    for name, form in forms.items():
        assert "reference" in ops.available_backends(name)
        for backend in ops.available_backends(name):
            if why_not(backend, torch.device("cpu"), torch.float32) is None:
                form(**good(), backend=backend)
                continue
            with pytest.raises(ValueError, match=f"backend {backend!r} can't run here: .+"):
                form(**good(), backend=backend)


def test_why_a_backend_can_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, too old, or elsewhere."""
    here, dtype = torch.device("cpu"), torch.float32
    installed = {"triton": "3.9.0"}
    monkeypatch.setattr(backends, "find_spec", installed.get)
    monkeypatch.setattr(backends, "version", installed.__getitem__)
    assert "fla is not installed: pip install fla-core" in str(why_not("fla", here, dtype))
    installed["triton"] = "3.3.1"
    assert why_not("triton", here, dtype) == "triton is 3.3.1, and the kernels need 3.4 or newer"
    del installed["triton"]
    assert "triton is not installed" in str(why_not("triton", here, dtype))
    assert why_not("torch", here, dtype) is None


def test_auto_takes_no_kernel_that_was_not_verified() -> None:
    for device in ("cpu", "meta"):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert ops.choose_backend("chunkwise", "auto", torch.device(device), dtype) == "torch"
    assert ops.choose_backend("recurrent", "auto", torch.device("cpu"), dtype) == "reference"


@every_form
def test_meta_tensors_give_shapes(form: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Shapes without memory, for counting; and whether q may be elsewhere than log_decay."""
    arguments = {name: x if name == "log_decay" else x.to("meta") for name, x in good().items()}
    out, state = form(**arguments)
    assert (out.device.type, out.shape) == ("meta", (2, 5, 3, 6))
    assert (state.device.type, state.shape) == ("meta", (2, 3, 4, 6))
