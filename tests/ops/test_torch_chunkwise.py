"""The fast path: what it computes, to which precision, and which bits may depend on which inputs.

Gradients are those of a random projection of the output and the state. "bf16 in fp32" and "bf16 in
bf16" are bf16 inputs on a CPU without and with fast bf16 products; both are tested on any CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet import ops
from retnet.ops import precision, torch_chunkwise

Form = Callable[..., tuple[Tensor, Tensor]]

FAST: Form = partial(ops.retention_chunkwise, backend="torch")
REFERENCE: Form = partial(ops.retention_chunkwise, backend="reference")
FORMS: dict[str, Form] = {
    "parallel": ops.retention_parallel,
    "recurrent": ops.retention_recurrent,
    "chunkwise-reference": partial(REFERENCE, chunk_size=16),
    "chunkwise-torch": partial(FAST, chunk_size=16),
}
NAMES = ("out", "state", "dq", "dk", "dv", "dstate")
LINSPACE = (31 / 32, 0.98760, 0.99508, 511 / 512)


@dataclass(frozen=True)
class Inputs:
    """q, k [B, T, H, K], v [B, T, H, V], log_decay [H], state [B, H, K, V], segment_ids [B, T]."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    state: Tensor
    segment_ids: Tensor | None

    def rows(self, index: list[int]) -> "Inputs":
        ids = None if self.segment_ids is None else self.segment_ids[index]
        chosen = (x[index] for x in (self.q, self.k, self.v))
        return Inputs(*chosen, self.log_decay, self.state[index], ids)

    def double(self) -> "Inputs":
        q, k, v, state = (x.double() for x in (self.q, self.k, self.v, self.state))
        return replace(self, q=q, k=k, v=v, state=state)


def make_inputs(
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 2,
    tokens: int = 100,
    gammas: tuple[float, ...] = LINSPACE,
    key_size: int = 16,
    value_size: int = 24,
    segments: int = 1,
    seed: int = 0,
) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    heads = len(gammas)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    ids = None
    if segments > 1:
        ids = torch.randint(segments, (batch, tokens), generator=rng).sort(dim=1).values
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(
        q=normal(batch, tokens, heads, key_size),
        k=normal(batch, tokens, heads, key_size),
        v=normal(batch, tokens, heads, value_size),
        log_decay=torch.tensor(gammas, dtype=torch.float64).log(),
        state=normal(batch, heads, key_size, value_size).to(state_dtype),
        segment_ids=ids,
    )


def run(form: Form, inputs: Inputs) -> dict[str, Tensor]:
    """The output, the state, and the gradients of a projection that is the same for every row."""
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v, inputs.state)]
    q, k, v, state = leaves
    results = form(q, k, v, inputs.log_decay, state, segment_ids=inputs.segment_ids)
    rng = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(x.shape[1:], generator=rng, dtype=torch.float64).to(x.dtype).expand(x.shape)
        for x in results
    ]
    grads = torch.autograd.grad(results, leaves, weights, materialize_grads=True)
    return dict(zip(NAMES, (*(x.detach() for x in results), *grads), strict=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what was expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    errors = {name: relative_error(actual[name], expected[name]) for name in NAMES}
    assert all(error <= tolerance for error in errors.values()), errors  # A NaN is no pass.


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    different = [name for name in NAMES if not torch.equal(actual[name], expected[name])]
    assert not different


@dataclass(frozen=True)
class Arithmetic:
    """What comes in, and how far from the exact result the fast path may be."""

    dtype: torch.dtype
    fast_bf16: bool
    tolerance: float


ARITHMETICS = {
    "fp64": Arithmetic(torch.float64, False, 1e-12),
    "fp32": Arithmetic(torch.float32, False, 1e-5),
    "bf16 in fp32": Arithmetic(torch.bfloat16, False, 1e-2),
    "bf16 in bf16": Arithmetic(torch.bfloat16, True, 1e-2),
}


@pytest.fixture(params=ARITHMETICS)
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arithmetic:
    chosen = ARITHMETICS[request.param]
    monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: chosen.fast_bf16)
    return chosen


def test_products_are_in_the_dtype_that_the_cpu_is_fast_at(arithmetic: Arithmetic) -> None:
    """What the tests below stand on: the patched CPU does change what is computed."""
    expected = torch.float32 if arithmetic.dtype == torch.bfloat16 else arithmetic.dtype
    expected = torch.bfloat16 if arithmetic.fast_bf16 else expected
    assert torch_chunkwise.matmul_dtype(torch.zeros(1, dtype=arithmetic.dtype)) == expected
    assert torch_chunkwise.matmul_dtype(torch.zeros(1, dtype=torch.float16)) == torch.float32


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 777, 4096])
def test_against_reference(arithmetic: Arithmetic, tokens: int) -> None:
    """Outputs, state and every gradient, at the decays of the paper and none."""
    inputs = make_inputs(arithmetic.dtype, tokens=tokens, gammas=(*LINSPACE[::3], 1.0))
    expected = run(REFERENCE, inputs.double())
    assert_close(run(FAST, inputs), expected, arithmetic.tolerance)


def test_against_reference_with_segments(arithmetic: Arithmetic) -> None:
    inputs = make_inputs(arithmetic.dtype, tokens=900, segments=7)
    assert_close(run(FAST, inputs), run(REFERENCE, inputs.double()), arithmetic.tolerance)


@pytest.mark.parametrize("chunk_size", [1, 16, 50, 128, 10_000])
def test_any_chunk_size(arithmetic: Arithmetic, chunk_size: int) -> None:
    inputs = make_inputs(arithmetic.dtype, tokens=300)
    actual = run(partial(FAST, chunk_size=chunk_size), inputs)
    assert_close(actual, run(REFERENCE, inputs.double()), arithmetic.tolerance)


@pytest.mark.parametrize(
    "gammas", [(0.5,), (0.1,), (1e-3,), (1.0,), (1e-3, 0.1, 0.5, 1.0)], ids=str
)
def test_any_decay_stays_in_range(arithmetic: Arithmetic, gammas: tuple[float, ...]) -> None:
    """Folding gamma^-j into keys must not overflow, nor cost precision, where heads forget fast."""
    inputs = make_inputs(
        arithmetic.dtype, batch=1, tokens=2_000, gammas=gammas, key_size=8, value_size=8
    )
    actual = run(FAST, inputs)
    assert all(x.isfinite().all() for x in actual.values())
    assert_close(actual, run(REFERENCE, inputs.double()), arithmetic.tolerance)


@pytest.mark.parametrize("log_decay", [-50.0, -90.0, -800.0])
@pytest.mark.parametrize("form", FORMS)
def test_a_head_that_forgets_at_once(arithmetic: Arithmetic, form: str, log_decay: float) -> None:
    """Where gamma is (nearly) 0 in the state's dtype, a token sees itself only."""
    inputs = make_inputs(arithmetic.dtype, tokens=20, gammas=(1.0,))
    inputs = replace(inputs, log_decay=torch.tensor([log_decay], dtype=torch.float64))
    actual = run(FORMS[form], inputs)
    assert all(x.isfinite().all() for x in actual.values())
    exact = inputs.double()
    own = (exact.q * exact.k).sum(dim=-1, keepdim=True) * exact.v
    assert relative_error(actual["out"], own) <= arithmetic.tolerance


def test_folded_decay_stays_in_range() -> None:
    """The largest of size, size / 2, ... whose gamma^-(C-1) is below 2^40 (2^6 in fp16)."""
    for gamma, chunk, in_fp16 in (
        (1.0, 100, 100),
        (31 / 32, 100, 100),
        (0.5, 25, 6),
        (0.1, 12, 1),
        (1e-3, 3, 1),
        (1e-30, 1, 1),
    ):
        log_decay = torch.tensor([gamma, 0.999], dtype=torch.float64).log()
        assert torch_chunkwise.safe_chunk_size(log_decay, 100, torch.float32) == chunk
        assert torch_chunkwise.safe_chunk_size(log_decay, 100, torch.float16) == in_fp16


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_later_token_changes_nothing_earlier(
    arithmetic: Arithmetic, form: str, segments: int
) -> None:
    """Causality, to the bit."""
    inputs = make_inputs(arithmetic.dtype, tokens=70, segments=segments)
    other = make_inputs(arithmetic.dtype, tokens=70, seed=1)
    for cut in (1, 15, 16, 17, 48, 69):
        q, k, v = (
            torch.cat([ours[:, :cut], theirs[:, cut:]], dim=1)
            for ours, theirs in ((inputs.q, other.q), (inputs.k, other.k), (inputs.v, other.v))
        )
        changed = run(FORMS[form], replace(inputs, q=q, k=k, v=v))["out"]
        expected = run(FORMS[form], inputs)["out"]
        assert torch.equal(changed[:, :cut], expected[:, :cut])
        assert not torch.equal(changed[:, cut:], expected[:, cut:])


@pytest.mark.parametrize("form", FORMS)
def test_another_segment_changes_nothing(arithmetic: Arithmetic, form: str) -> None:
    """The middle one of three documents in a row, when the others and the state change: to the
    bit."""
    ids = torch.tensor([[4] * 21 + [7] * 30 + [4] * 19, [0] * 16 + [1] * 16 + [2] * 38])
    inputs = replace(make_inputs(arithmetic.dtype, tokens=70), segment_ids=ids)
    other = make_inputs(arithmetic.dtype, tokens=70, seed=1)
    middle = torch.tensor([[0] * 21 + [1] * 30 + [0] * 19, [0] * 16 + [1] * 16 + [0] * 38]).bool()
    q, k, v = (
        torch.where(middle[..., None, None], ours, theirs)
        for ours, theirs in ((inputs.q, other.q), (inputs.k, other.k), (inputs.v, other.v))
    )
    changed = run(FORMS[form], replace(inputs, q=q, k=k, v=v, state=other.state))
    expected = run(FORMS[form], inputs)
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(changed[name][middle], expected[name][middle]), name
    assert not changed["dstate"][:, 0, 0, 0].eq(0).any()  # The first segment does read the state.


@pytest.mark.parametrize("form", FORMS)
def test_other_rows_change_nothing(arithmetic: Arithmetic, form: str) -> None:
    """Batch independence, to the bit, with segments that differ by row."""
    inputs = make_inputs(arithmetic.dtype, batch=5, tokens=70, segments=3)
    other = make_inputs(arithmetic.dtype, batch=5, tokens=70, segments=3, seed=1)
    joined = Inputs(
        *(
            torch.cat([theirs[:2], ours[2:3], theirs[3:]])
            for ours, theirs in ((inputs.q, other.q), (inputs.k, other.k), (inputs.v, other.v))
        ),
        inputs.log_decay,
        torch.cat([other.state[:2], inputs.state[2:3], other.state[3:]]),
        torch.cat([other.segment_ids[:2], inputs.segment_ids[2:3], other.segment_ids[3:]]),
    )
    actual, expected = run(FORMS[form], joined), run(FORMS[form], inputs)
    for name in NAMES:
        assert torch.equal(actual[name][2], expected[name][2]), name
        assert not torch.equal(actual[name][1], expected[name][1]), name


SHAPES = [  # T, H, K, V, chunk_size
    (1, 1, 1, 1, 64),
    (1, 4, 64, 128, 64),
    (7, 3, 8, 16, 4),
    (37, 2, 8, 8, 16),
    (100, 2, 3, 5, 7),
    (129, 3, 16, 24, 64),
    (513, 2, 32, 64, 128),
    (1000, 8, 32, 64, 64),
    (64, 2, 64, 128, 64),
    (100, 2, 16, 2, 1),
    (100, 2, 1, 128, 32),
    (700, 2, 1, 33, 128),
    (700, 2, 32, 16, 3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_is_the_same_alone_and_in_a_batch(
    arithmetic: Arithmetic, shape: tuple[int, int, int, int, int]
) -> None:
    """To the bit: a request's answer must not depend on what else is being served."""
    tokens, heads, key_size, value_size, chunk_size = shape
    inputs = make_inputs(
        arithmetic.dtype,
        batch=5,
        tokens=tokens,
        gammas=(*LINSPACE, *LINSPACE)[:heads],
        key_size=key_size,
        value_size=value_size,
    )
    form = partial(FAST, chunk_size=chunk_size)
    together = run(form, inputs)
    for rows in ([0], [4], [1, 2, 3]):
        alone = run(form, inputs.rows(rows))
        assert_same_bits(alone, {name: x[rows] for name, x in together.items()})


@settings(max_examples=60)
@given(
    row_bytes=st.integers(1, 16_000),
    span_bytes=st.integers(1, 160_000),
    tokens=st.integers(0, 90),
    chunk_size=st.integers(1, 30),
    batch=st.integers(1, 4),
    segments=st.integers(1, 5),
)
def test_any_spans(
    row_bytes: int,
    span_bytes: int,
    tokens: int,
    chunk_size: int,
    batch: int,
    segments: int,
) -> None:
    """Long inputs are worked through in spans of chunks and groups of rows; short ones here too."""
    inputs = make_inputs(
        torch.float64,
        batch=batch,
        tokens=tokens,
        gammas=(0.5, 0.97, 1.0),
        key_size=3,
        value_size=5,
        segments=segments if tokens else 1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_chunkwise, "ROW_BYTES", row_bytes)
        patch.setattr(torch_chunkwise, "SPAN_BYTES", span_bytes)
        actual = run(partial(FAST, chunk_size=chunk_size), inputs)
    expected = run(REFERENCE, inputs)
    for name in NAMES:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-10, atol=1e-10)


def test_gradients_by_finite_differences() -> None:
    """The backward pass against nothing but the forward pass."""
    inputs = make_inputs(
        torch.float64, tokens=13, gammas=(0.5, 1.0), key_size=2, value_size=3, segments=3
    )
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v, inputs.state)]

    def form(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        ids = inputs.segment_ids
        return FAST(q, k, v, inputs.log_decay, state, segment_ids=ids, chunk_size=4)

    assert torch.autograd.gradcheck(form, leaves)


def test_second_derivatives_are_refused() -> None:
    """The backward pass has no graph; a gradient penalty must not go wrong in silence."""
    inputs = make_inputs(torch.float64, tokens=5)
    q, k = inputs.q.requires_grad_(), inputs.k.requires_grad_()
    out, _ = FAST(q, k, inputs.v, inputs.log_decay, inputs.state)
    with pytest.raises(RuntimeError, match="second derivatives"):
        (penalty,) = torch.autograd.grad(out.sum(), q, create_graph=True)
        (out.sum() + penalty.square().sum()).backward()


def test_log_decay_is_not_learned_in_silence() -> None:
    """The fast path has no gradient by log_decay; it says so where one is asked for."""
    inputs = make_inputs(tokens=5)
    with pytest.raises(ValueError, match="log_decay"):
        FAST(inputs.q, inputs.k, inputs.v, inputs.log_decay.requires_grad_())


@pytest.mark.parametrize("form", ["parallel", "recurrent", "chunkwise-reference"])
def test_log_decay_gradient_of_the_reference(form: str) -> None:
    """The plain forms do differentiate by log_decay."""
    inputs = make_inputs(torch.float64, tokens=20, gammas=(0.5, 0.97), segments=2)
    log_decay = inputs.log_decay.requires_grad_()

    def projected(lg: Tensor) -> Tensor:
        ids = inputs.segment_ids
        out, state = FORMS[form](inputs.q, inputs.k, inputs.v, lg, inputs.state, segment_ids=ids)
        return out.sum() + state.sum()

    assert torch.autograd.gradcheck(projected, [log_decay])


def test_autocast_around_everything_changes_nothing(arithmetic: Arithmetic) -> None:
    """Under autocast, fp32 products of the backward pass would go through bf16."""
    inputs = make_inputs(arithmetic.dtype, tokens=150)
    expected = run(FAST, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(FAST, inputs)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_around_the_forward_pass_changes_nothing(form: str) -> None:
    inputs = make_inputs(tokens=50)
    arguments = inputs.q, inputs.k, inputs.v, inputs.log_decay, inputs.state
    expected = FORMS[form](*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        actual = FORMS[form](*arguments)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_dtypes(form: str, dtype: torch.dtype) -> None:
    """Outputs as the inputs; the state fp32, or fp64 with them; each gradient as its input."""
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    results = run(FORMS[form], make_inputs(dtype, tokens=20))
    assert {name: x.dtype for name, x in results.items()} == {
        **dict.fromkeys(("out", "dq", "dk", "dv"), dtype),
        **dict.fromkeys(("state", "dstate"), state_dtype),
    }


@pytest.mark.parametrize("form", FORMS)
def test_state_of_bf16_inputs_keeps_what_bf16_would_lose(form: str) -> None:
    """A fp32 state of 1 + 2^-20 comes back so; in bf16 it would be 1."""
    inputs = make_inputs(torch.bfloat16, tokens=3, gammas=(1.0,))
    state = torch.full_like(inputs.state, 1 + 2**-20)
    zeros = torch.zeros_like(inputs.k)
    _, after = FORMS[form](inputs.q, zeros, inputs.v, inputs.log_decay, state)
    assert torch.equal(after, state)


@pytest.mark.parametrize(("batch", "tokens"), [(2, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_do(form: str, batch: int, tokens: int) -> None:
    """No tokens: the state goes through. No rows: empty results. Gradients in both cases."""
    inputs = make_inputs(batch=batch, tokens=tokens)
    results = run(FORMS[form], inputs)
    assert results["out"].shape == inputs.v.shape
    assert results["dq"].shape == results["dk"].shape == inputs.q.shape
    assert torch.equal(results["state"], inputs.state)
    assert results["dstate"].shape == inputs.state.shape
    ids = torch.zeros(batch, tokens, dtype=torch.int64)
    out, state = FORMS[form](inputs.q, inputs.k, inputs.v, inputs.log_decay, segment_ids=ids)
    assert out.shape == inputs.v.shape
    assert torch.equal(state, torch.zeros_like(inputs.state))


@pytest.mark.parametrize("form", FORMS)
def test_memory_layout_does_not_matter(form: str) -> None:
    """Transposed, strided and broadcast inputs, and a broadcast gradient, as their copies."""
    inputs = make_inputs(tokens=40, batch=3)
    q = inputs.q.transpose(1, 2).contiguous().transpose(1, 2)
    k = torch.stack([inputs.k, inputs.q], dim=-1)[..., 0]
    v = inputs.v[:1].expand(3, -1, -1, -1)
    state = inputs.state.mT.contiguous().mT
    ids = torch.arange(40).div(15, rounding_mode="floor").expand(3, 40)
    strange = Inputs(q, k, v, inputs.log_decay, state, ids)
    assert not any(x.is_contiguous() for x in (q, k, v, state, ids))
    plain = Inputs(
        *(x.contiguous() for x in (q, k, v)), inputs.log_decay, state.contiguous(), ids.contiguous()
    )
    assert_same_bits(run(FORMS[form], strange), run(FORMS[form], plain))


@pytest.mark.parametrize("form", FORMS)
def test_inputs_are_left_alone(form: str) -> None:
    inputs = make_inputs(tokens=40, segments=3)
    tensors = (inputs.q, inputs.k, inputs.v, inputs.log_decay, inputs.state, inputs.segment_ids)
    before = [x.clone() for x in tensors]
    results = run(FORMS[form], inputs)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))
    results["state"].add_(1)
    assert torch.equal(inputs.state, before[4])


def test_calls_do_not_share_memory() -> None:
    """Two calls whose backward passes come in the other order, the first one twice."""
    both = make_inputs(tokens=90), make_inputs(tokens=130, seed=1)
    expected = [q_gradient(q_output(inputs)) for inputs in both]
    first, second = (q_output(inputs) for inputs in both)
    for call, gradient in ((second, expected[1]), (first, expected[0]), (first, expected[0])):
        assert torch.equal(q_gradient(call), gradient)


def q_output(inputs: Inputs) -> tuple[Tensor, Tensor]:
    q = inputs.q.detach().requires_grad_()
    return FAST(q, inputs.k, inputs.v, inputs.log_decay, inputs.state)[0], q


def q_gradient(call: tuple[Tensor, Tensor]) -> Tensor:
    out, q = call
    return torch.autograd.grad(out.square().sum(), q, retain_graph=True)[0]


def test_only_what_is_asked_for_has_a_gradient() -> None:
    inputs = make_inputs(tokens=10)
    out, state = FAST(inputs.q, inputs.k, inputs.v, inputs.log_decay)
    assert not out.requires_grad
    assert not state.requires_grad
    v = inputs.v.requires_grad_()
    _, state = FAST(inputs.q, inputs.k, v, inputs.log_decay)  # The output's gradient is None.
    (grad,) = torch.autograd.grad(state.sum(), v)
    _, expected = REFERENCE(inputs.q, inputs.k, v, inputs.log_decay)
    assert relative_error(grad, torch.autograd.grad(expected.sum(), v)[0]) < 1e-6
