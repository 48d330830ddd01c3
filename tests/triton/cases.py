"""What kernels are asked, and how far from the truth they are: relative errors, by name.

Inputs lie in buffers of NaN, whose numbers must not be read.
"""

from math import log
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.reference import retention_recurrent

GAMMAS = (31 / 32, 0.3, 1.0)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Case(NamedTuple):
    """A call of the chunkwise form."""

    tokens: int
    key_size: int = 16
    value_size: int = 24
    segments: int = 1
    dtype: torch.dtype = torch.float32
    gammas: tuple[float, ...] = GAMMAS
    batch: int = 2


def error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what was expected; infinite for a NaN."""
    difference = float((actual.double() - expected).norm() / expected.norm().clamp(min=1e-30))
    return difference if difference == difference else float("inf")


def inside_nan(x: Tensor) -> Tensor:
    """The same numbers, not contiguous, with NaN before, between and behind them."""
    padded = torch.full([size + 3 for size in x.shape], float("nan"), dtype=x.dtype)
    view = padded[tuple(slice(2, 2 + size) for size in x.shape)]
    return view.copy_(x)


def chunkwise_errors(chunkwise: ModuleType, case: Case) -> dict[str, float]:
    """Of outputs, state and all gradients, against sums in fp64."""
    rng = torch.Generator().manual_seed(0)
    heads, state_size = len(case.gammas), (case.key_size, case.value_size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    sizes = (case.key_size, case.key_size, case.value_size, case.value_size)
    drawn = [
        inside_nan(normal(case.batch, case.tokens, heads, size).to(case.dtype)) for size in sizes
    ]
    state, grad_state = (inside_nan(normal(case.batch, heads, *state_size).float()) for _ in "sg")
    log_decay = torch.tensor(case.gammas, dtype=torch.float64).log()
    ids = None
    if case.segments > 1:
        ids = torch.randint(case.segments, (case.batch, case.tokens), generator=rng)
        ids = ids.sort(dim=1).values

    *inputs, grad_out = drawn
    leaves = [x.detach().requires_grad_() for x in (*inputs, state)]
    q, k, v, first = leaves
    results = chunkwise.retention_chunkwise(q, k, v, log_decay, first, ids, 64)
    found = (*results, *torch.autograd.grad(results, leaves, (grad_out, grad_state)))

    exact = [x.detach().double().requires_grad_() for x in leaves]
    true = retention_recurrent(*exact[:3], log_decay, exact[3], ids)
    grads = torch.autograd.grad(true, exact, (grad_out.double(), grad_state.double()))
    names = ("out", "state", "dq", "dk", "dv", "dstate")
    pairs = zip(names, found, (*true, *grads), strict=True)
    return {name: error(x.detach(), y.detach()) for name, x, y in pairs}


def decode_errors(decode: ModuleType, norm: str, *, ring: int = 4) -> dict[str, float]:
    """Of eleven tokens in three of five rows, by both kinds of step."""
    rng = torch.Generator().manual_seed(0)
    batch, tokens, heads, key_size, value_size = 3, 11, 2, 24, 40

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    q, k = (normal(tokens, batch, heads, key_size) for _ in "qk")
    v, gate = (normal(tokens, batch, heads, value_size) for _ in "vg")
    rows = torch.tensor([4, 0, 2])
    first = normal(batch, heads, key_size, value_size)
    states = torch.full((5, heads, key_size, value_size), float("nan"))
    states[rows] = first
    log_decay = torch.tensor([0.9, 0.3], dtype=torch.float64).log()
    log2_decay = (log_decay / log(2)).float()

    by_row = [x.transpose(0, 1).double() for x in (q, k, v)]
    true, last = retention_recurrent(*by_row, log_decay, first.double(), None)
    true = finished(true.transpose(0, 1), gate.double(), norm)
    finishes = [None if norm == "none" else decode.Finish(norm, each, 1e-5) for each in gate]
    calls = list(zip(q, k, v, finishes, strict=True))

    now = states.clone()
    stepped = [decode.step_(*x, log2_decay, now, rows, finish) for *x, finish in calls]
    deferred = decode.DeferredStates.of(states.clone(), ring, torch.float32)
    later = []
    for query, key, value, finish in calls:
        if int(deferred.counts[rows[0]]) == ring:
            deferred.flush_(log2_decay, rows)
            deferred.empty_(rows)
        # A draft that is refused leaves nothing behind.
        deferred.step_(key, query, value, log2_decay, rows, finish)
        deferred.count_(rows, 1)
        deferred.count_(rows, -1)
        later.append(deferred.step_(query, key, value, log2_decay, rows, finish))
        deferred.count_(rows, 1)
    deferred.flush_(log2_decay, rows)
    untouched = now[[1, 3]].isnan().all() and deferred.states[[1, 3]].isnan().all()
    return {
        "step": error(torch.stack(stepped), true),
        "its state": error(now[rows], last),
        "deferred step": error(torch.stack(later), true),
        "its state after all": error(deferred.states[rows], last),
        "other rows": 0.0 if untouched else 1.0,
    }


def finished(x: Tensor, gate: Tensor, norm: str) -> Tensor:
    """x after the norm and the gate."""
    if norm == "none":
        return x
    apply = F.layer_norm if norm == "layernorm" else F.rms_norm
    return apply(x, (x.shape[-1],), eps=1e-5) * F.silu(gate)
