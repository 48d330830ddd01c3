"""The laws of the op: three forms that are one, in fp64, on drawn shapes, cuts, segments and
decays."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet import ops

FORMS = {
    "parallel": ops.retention_parallel,
    "recurrent": ops.retention_recurrent,
    "chunkwise-reference": lambda *args, chunk_size=64, **kw: ops.retention_chunkwise(
        *args, chunk_size=chunk_size, backend="reference", **kw
    ),
    "chunkwise-torch": lambda *args, chunk_size=64, **kw: ops.retention_chunkwise(
        *args, chunk_size=chunk_size, backend="torch", **kw
    ),
}


@dataclass
class Case:
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    state: Tensor | None
    segment_ids: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.q, self.k, self.v, self.state) if x is not None]


def make_case(
    seed: int,
    *,
    batch: int = 2,
    tokens: int = 37,
    gammas: tuple[float, ...] = (0.5, 0.97, 1.0),
    key_size: int = 4,
    value_size: int = 6,
    with_state: bool = True,
    segments: int = 1,
    dtype: torch.dtype = torch.float64,
) -> Case:
    rng = torch.Generator().manual_seed(seed)
    heads = len(gammas)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()

    ids = None
    if segments > 1:
        ids = torch.randint(segments, (batch, tokens), generator=rng).sort(dim=1).values
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Case(
        q=normal(batch, tokens, heads, key_size),
        k=normal(batch, tokens, heads, key_size),
        v=normal(batch, tokens, heads, value_size),
        log_decay=torch.tensor(gammas, dtype=torch.float64).log(),
        state=normal(batch, heads, key_size, value_size, dtype=state_dtype) if with_state else None,
        segment_ids=ids,
    )


def outputs_and_gradients(form, case: Case, seed: int = 0, **options) -> list[Tensor]:
    """The output, the state, and the gradients of a random projection of both by every input."""
    out, state = form(
        case.q, case.k, case.v, case.log_decay, case.state, segment_ids=case.segment_ids, **options
    )
    rng = torch.Generator().manual_seed(seed)
    projections = [
        torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x.dtype) for x in (out, state)
    ]
    pairs = [(x, p) for x, p in zip((out, state), projections, strict=True) if x.requires_grad]
    outputs, weights = zip(*pairs, strict=True)
    grads = torch.autograd.grad(outputs, case.leaves, weights, materialize_grads=True)
    return [out.detach(), state.detach(), *grads]


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected magnitude."""
    if expected.numel() == 0:
        assert actual.shape == expected.shape
        return 0.0
    scale = max(expected.abs().max().item(), 1e-30)
    return (actual.double() - expected.double()).abs().max().item() / scale


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for name, a, e in zip(
        ("out", "state", "dq", "dk", "dv", "dstate"), actual, expected, strict=False
    ):
        assert a.dtype == e.dtype, name
        assert error(a, e) <= tolerance, f"{name}: {error(a, e):.2e}"


def explicit_sum(case: Case) -> tuple[Tensor, Tensor]:
    """The op's definition, token by token and pair by pair, with no shared code."""
    batch, tokens, heads, key_size = case.q.shape
    gamma = case.log_decay.exp()
    state = torch.zeros(batch, heads, key_size, case.v.shape[3], dtype=torch.float64)
    state = state if case.state is None else case.state.detach().double()
    out = torch.zeros(case.v.shape, dtype=torch.float64)
    last = state * 0
    for b in range(batch):
        ids = [0] * tokens if case.segment_ids is None else case.segment_ids[b].tolist()
        for h in range(heads):
            for n in range(tokens):
                for m in range(n, -1, -1):
                    if ids[m] != ids[n]:
                        break
                    seen = gamma[h] ** (n - m) * (
                        case.q[b, n, h].double() @ case.k[b, m, h].double()
                    )
                    out[b, n, h] += seen.detach() * case.v[b, m, h].detach().double()
                else:
                    out[b, n, h] += (
                        gamma[h] ** (n + 1) * case.q[b, n, h].double() @ state[b, h]
                    ).detach()
            for m in range(tokens - 1, -1, -1):
                if ids[m] != ids[-1]:
                    break
                write = torch.outer(case.k[b, m, h].double(), case.v[b, m, h].double()).detach()
                last[b, h] += gamma[h] ** (tokens - 1 - m) * write
            else:
                last[b, h] += gamma[h] ** tokens * state[b, h]
    return out, last


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("segments", [1, 4])
def test_form_is_the_explicit_sum(form: str, segments: int) -> None:
    """Against the double sum that defines the op, which shares no code with any form."""
    case = make_case(3, tokens=11, segments=segments)
    out, state = explicit_sum(case)
    actual = FORMS[form](
        case.q, case.k, case.v, case.log_decay, case.state, segment_ids=case.segment_ids
    )
    assert error(actual[0].detach(), out) < 1e-13
    assert error(actual[1].detach(), state) < 1e-13


gamma = st.one_of(
    st.just(1.0),
    st.floats(0.5, 1.0),
    st.integers(0, 30).map(lambda n: 1 - 2.0 ** (-n - 1)),
    st.just(1e-3),
)


@settings(max_examples=250)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    tokens=st.integers(0, 70),
    gammas=st.lists(gamma, min_size=1, max_size=3).map(tuple),
    key_size=st.integers(1, 5),
    value_size=st.integers(1, 5),
    chunk_size=st.integers(1, 80),
    with_state=st.booleans(),
    segments=st.integers(1, 6),
    data=st.data(),
)
def test_three_forms_agree_for_any_shape_cut_chunk_segment_and_decay(
    seed, batch, tokens, gammas, key_size, value_size, chunk_size, with_state, segments, data
) -> None:
    """Outputs, state and all gradients to 1e-12 in fp64, also cut in two between any two forms."""
    case = make_case(
        seed,
        batch=batch,
        tokens=tokens,
        gammas=gammas,
        key_size=key_size,
        value_size=value_size,
        with_state=with_state,
        segments=segments if tokens else 1,
    )
    expected = outputs_and_gradients(ops.retention_recurrent, case)
    assert_same(outputs_and_gradients(ops.retention_parallel, case), expected, 1e-12)
    for backend in ("torch", "reference"):
        chunkwise = outputs_and_gradients(
            ops.retention_chunkwise, case, chunk_size=chunk_size, backend=backend
        )
        assert_same(chunkwise, expected, 1e-12)

    cut = data.draw(st.integers(0, tokens))
    first = data.draw(st.sampled_from(sorted(FORMS)))
    second = data.draw(st.sampled_from(sorted(FORMS)))
    assert_same(outputs_and_gradients(cut_form(first, second, cut), case), expected, 1e-12)


def cut_form(first: str, second: str, cut: int):
    """One form up to `cut`, another from there. A boundary at the cut drops the state."""

    def form(q, k, v, log_decay, state, *, segment_ids):
        head, tail = slice(0, cut), slice(cut, None)
        ids = [None, None] if segment_ids is None else [segment_ids[:, head], segment_ids[:, tail]]
        out_1, state = FORMS[first](
            q[:, head], k[:, head], v[:, head], log_decay, state, segment_ids=ids[0]
        )
        if segment_ids is not None and 0 < cut < segment_ids.shape[1]:
            state = state * (segment_ids[:, cut] == segment_ids[:, cut - 1])[:, None, None, None]
        out_2, state = FORMS[second](
            q[:, tail], k[:, tail], v[:, tail], log_decay, state, segment_ids=ids[1]
        )
        return torch.cat([out_1, out_2], dim=1), state

    return form
