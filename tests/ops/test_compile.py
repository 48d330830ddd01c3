"""The forms of retention under torch.compile: one graph, and the results of eager calls.

The backend "aot_eager" traces as every backend has it traced, and then runs what eager calls run.
"""

import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from retnet import ops

Form = Callable[..., tuple[Tensor, Tensor]]

FORMS: dict[str, Form] = {
    "parallel": ops.retention_parallel,
    "recurrent": ops.retention_recurrent,
    "chunkwise-reference": partial(ops.retention_chunkwise, chunk_size=4, backend="reference"),
    "chunkwise-torch": partial(ops.retention_chunkwise, chunk_size=4, backend="torch"),
}
every_form = pytest.mark.parametrize("form", FORMS)
FAST = FORMS["chunkwise-torch"]
TOLERANCE = 1e-6


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> None:
    torch.compiler.reset()


def make_inputs(
    dtype: torch.dtype = torch.float32,
    *,
    tokens: int = 7,
    gammas: tuple[float, ...] = (0.5, 0.97, 1.0),
    with_state: bool = True,
    segments: int = 1,
) -> dict[str, Tensor | None]:
    """Arguments of a form, by name: B=2, K=4, V=6."""
    rng = torch.Generator().manual_seed(0)
    heads = len(gammas)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    state = normal(2, heads, 4, 6).to(torch.float64 if dtype == torch.float64 else torch.float32)
    ids = torch.randint(segments, (2, tokens), generator=rng).sort(dim=1).values
    return {
        "q": normal(2, tokens, heads, 4),
        "k": normal(2, tokens, heads, 4),
        "v": normal(2, tokens, heads, 6),
        "log_decay": torch.tensor(gammas, dtype=torch.float64).log(),
        "state": state if with_state else None,
        "segment_ids": ids if segments > 1 else None,
    }


def run(form: Form, inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The output, the state, and the gradients of a projection of both."""
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in inputs.items()
        if x is not None and name in ("q", "k", "v", "state")
    }
    results = form(**{**inputs, **leaves})
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=rng).to(x.dtype) for x in results]
    grads = torch.autograd.grad(results, list(leaves.values()), weights)
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"out": results[0].detach(), "last_state": results[1].detach(), **named}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """By relative error. Shapes, dtypes and memory layouts are the same."""
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert actual[name].dtype == x.dtype, name
        assert actual[name].shape == x.shape, name
        error = (actual[name].double() - x.double()).norm() / x.double().norm()
        assert error <= TOLERANCE, (name, error)


def compiled(form: Form, backend: str = "aot_eager", *, dynamic: bool = False) -> Form:
    return torch.compile(form, fullgraph=True, dynamic=dynamic, backend=backend)


@every_form
@pytest.mark.parametrize("with_state", [False, True], ids=["", "state"])
@pytest.mark.parametrize("segments", [1, 3])
def test_as_eager(form: str, with_state: bool, segments: int) -> None:
    """Outputs, state and every gradient."""
    inputs = make_inputs(with_state=with_state, segments=segments)
    assert_close(run(compiled(FORMS[form]), inputs), run(FORMS[form], inputs))


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        *((form, torch.bfloat16) for form in FORMS),
        ("chunkwise-torch", torch.float16),
        ("chunkwise-torch", torch.float64),
    ],
)
def test_dtypes(form: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype)
    assert_close(run(compiled(FORMS[form]), inputs), run(FORMS[form], inputs))


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_any_chunk_size(chunk_size: int) -> None:
    form, inputs = partial(FAST, chunk_size=chunk_size), make_inputs()
    assert_close(run(compiled(form), inputs), run(form, inputs))


@every_form
def test_no_graph_knows_the_decays(form: str) -> None:
    """One graph serves heads that never forget and heads that forget at once, whose chunks the fast
    form makes shorter.
    """
    graph = compiled(FORMS[form])
    run(graph, make_inputs())
    with torch.compiler.set_stance("fail_on_recompile"):
        for gammas in ((1.0, 1.0, 1.0), (1e-3, 0.1, 0.5), (1e-30, 1e-6, 1.0)):
            inputs = make_inputs(gammas=gammas)
            assert_close(run(graph, inputs), run(FORMS[form], inputs))


@pytest.mark.parametrize(
    ("form", "segments"), [("parallel", 3), ("chunkwise-torch", 1), ("chunkwise-torch", 3)]
)
def test_one_graph_for_every_length(form: str, segments: int) -> None:
    graph = compiled(FORMS[form], dynamic=True)
    run(graph, make_inputs(segments=segments))
    with torch.compiler.set_stance("fail_on_recompile"):
        for tokens in (3, 37, 150):
            inputs = make_inputs(tokens=tokens, segments=segments)
            assert_close(run(graph, inputs), run(FORMS[form], inputs))


def test_autocast_around_everything_changes_nothing() -> None:
    inputs = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(compiled(FAST), inputs)
    assert_close(actual, run(FAST, inputs))


@every_form
def test_autocast_around_the_forward_pass_changes_nothing(form: str) -> None:
    inputs = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        actual = compiled(FORMS[form])(**inputs)
    torch.testing.assert_close(actual, FORMS[form](**inputs), rtol=TOLERANCE, atol=TOLERANCE)


def test_memory_layout_does_not_matter() -> None:
    inputs = make_inputs(tokens=20)
    plain = run(FAST, inputs)
    for name in ("q", "k", "v", "state"):
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(run(compiled(FAST), inputs), plain)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_inductor() -> None:
    inputs = make_inputs(segments=3)
    assert_close(run(compiled(FAST, "inductor"), inputs), run(FAST, inputs))


def operator_arguments(segments: int) -> tuple[Tensor | int | None, ...]:
    inputs = make_inputs(tokens=20, segments=segments)
    leaves = (inputs[name].requires_grad_() for name in ("q", "k", "v", "state"))
    return *leaves, inputs["log_decay"], inputs["segment_ids"], 8


@pytest.mark.parametrize("segments", [1, 3])
def test_operators_keep_torchs_rules(segments: int) -> None:
    """Their schemas, shapes without numbers, gradients, and traces with symbols for sizes."""
    arguments = operator_arguments(segments)
    torch.library.opcheck(torch.ops.retnet.chunkwise.default, arguments)
    plain = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    gradients = [torch.ones_like(x) for x in torch.ops.retnet.chunkwise(*plain)]
    torch.library.opcheck(torch.ops.retnet.chunkwise_backward.default, (*plain, *gradients))


def test_second_derivatives_are_refused() -> None:
    """By the operator, as a graph that was exported holds it, and by a compiled function."""
    arguments = operator_arguments(1)
    out, _ = torch.ops.retnet.chunkwise(*arguments)
    (grad,) = torch.autograd.grad(out.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        grad.sum().backward()

    inputs = make_inputs()
    q = inputs["q"].requires_grad_()
    out, _ = compiled(FAST)(**inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


@every_form
def test_shapes_are_still_checked(form: str) -> None:
    inputs = make_inputs()
    inputs["v"] = inputs["v"][:, 1:]
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="v must be"):
        compiled(FORMS[form])(**inputs)
