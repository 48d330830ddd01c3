"""Every kernel against sums in fp64, at lengths of every residue, without a GPU."""

import pytest
import torch

from retnet import ops
from retnet.ops.triton import chunkwise, decode
from tests.triton.cases import TOLERANCE, Case, chunkwise_errors, decode_errors, error

# Chunks of fp32 are of 32 tokens and super-chunks of 128; of 16 bits 64 and 256.
LENGTHS = (1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 160, 295)


def assert_within(errors: dict[str, float], tolerance: float) -> None:
    assert all(each <= tolerance for each in errors.values()), errors


@pytest.mark.parametrize("tokens", LENGTHS)
def test_lengths(tokens: int) -> None:
    assert_within(chunkwise_errors(chunkwise, Case(tokens)), 1e-6)


@pytest.mark.parametrize("sizes", [(16, 32), (64, 128), (20, 100), (80, 48), (7, 5), (1, 1)])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_sizes_and_types(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    case = Case(75, *sizes, dtype=dtype, gammas=(31 / 32, 0.5), batch=1)
    assert_within(chunkwise_errors(chunkwise, case), TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [1, 64, 300])
def test_the_papers_head(tokens: int) -> None:
    case = Case(tokens, 256, 512, dtype=torch.float16, gammas=(1 - 2**-6,), batch=1)
    assert_within(chunkwise_errors(chunkwise, case), TOLERANCE[torch.float16])


@pytest.mark.parametrize("tokens", [33, 129, 290])
@pytest.mark.parametrize("segments", [2, 9])
def test_segments(tokens: int, segments: int) -> None:
    assert_within(chunkwise_errors(chunkwise, Case(tokens, segments=segments)), 1e-6)


@pytest.mark.parametrize("gamma", [1e-6, 1e-3, 0.1, 0.5, 1 - 2**-12, 1.0])
def test_any_decay(gamma: float) -> None:
    assert_within(chunkwise_errors(chunkwise, Case(140, gammas=(gamma,))), 1e-6)


def test_no_tokens() -> None:
    q, v = torch.zeros(2, 0, 3, 16, requires_grad=True), torch.zeros(2, 0, 3, 8)
    state = torch.ones(2, 3, 16, 8)
    log_decay = torch.zeros(3)
    out, after = ops.retention_chunkwise(q, q, v, log_decay, state, backend="triton")
    assert out.shape == v.shape
    assert torch.equal(after, state)
    after.sum().backward()


def test_compiled_whole() -> None:
    """The kernels are one operator to compilers."""
    q, k, v = (torch.randn(1, 40, 2, 16, requires_grad=True) for _ in range(3))
    log_decay = torch.tensor([0.9, 0.5]).log()

    def form(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.retention_chunkwise(q, k, v, log_decay, backend="triton")[0]

    compiled = torch.compile(form, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(q, k, v).square().sum(), (q, k, v)) for f in (form, compiled)]
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_operators_are_as_torch_wants_them() -> None:
    q, k, v = (torch.randn(1, 33, 2, 16, requires_grad=True) for _ in range(3))
    state = torch.randn(1, 2, 16, 16, requires_grad=True)
    log_decay = torch.tensor([0.9, 0.5]).log()
    torch.library.opcheck(
        torch.ops.retnet.triton_chunkwise, (q, k, v, state, log_decay, None), rtol=1e-4, atol=1e-5
    )


def test_what_can_not_run_says_why() -> None:
    x = torch.zeros(1, 4, 1, 16, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"'triton' can't run here: it has no kernels for torch.f"):
        ops.retention_chunkwise(x, x, x, torch.zeros(1), backend="triton")
    log_decay = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="must not require a gradient on the 'triton' backend"):
        ops.retention_chunkwise(*[x.float()] * 3, log_decay, backend="triton")
    with pytest.raises(ValueError, match="ring must be a power of two up to 32, got 3"):
        decode.DeferredStates.of(torch.zeros(1, 1, 4, 4), 3, torch.float32)


@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
@pytest.mark.parametrize("ring", [1, 4, 16])
def test_steps(norm: str, ring: int) -> None:
    assert_within(decode_errors(decode, norm, ring=ring), 1e-6)


def test_a_deferred_state_of_16_bits() -> None:
    """The state alone is rounded, once in so many tokens."""
    states = torch.randn(1, 1, 32, 64, generator=torch.Generator().manual_seed(0))
    rows, log2_decay = torch.tensor([0]), torch.tensor([-0.01])
    inputs = torch.randn(3, 8, 1, 1, 64, generator=torch.Generator().manual_seed(1))
    exact, rounded = (
        decode.DeferredStates.of(states.to(dtype), 8, torch.float32)
        for dtype in (torch.float32, torch.float16)
    )
    for q, k, v in inputs.transpose(0, 1):
        q, k = q[..., :32].contiguous(), k[..., :32].contiguous()
        true = exact.step_(q, k, v, log2_decay, rows)
        assert error(rounded.step_(q, k, v, log2_decay, rows), true.double()) < 2e-3
        for states in (exact, rounded):
            states.count_(rows, 1)
