"""A RetNet outside of eager PyTorch: compiled, exported and as an ONNX graph, each as eagerly."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from retnet.config import ModelConfig
from retnet.export import DecodingStep, export_onnx
from retnet.model import RetNet, RetNetState
from retnet.ops import retention_chunkwise, retention_recurrent
from retnet.position import Retention

VOCAB, NUM_LAYERS = 50, 2
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> None:
    torch.compiler.reset()


def make_model(**changes: Any) -> RetNet:
    base = {"vocab_size": VOCAB, "d_model": 32, "num_layers": NUM_LAYERS, "num_heads": 4}
    config = ModelConfig(**{**base, **changes})
    return RetNet(config, generator=torch.Generator().manual_seed(0)).eval()


def drawn_tokens(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert (x - y).double().norm() <= TOLERANCE * y.double().norm()


class Read(nn.Module):
    """tokens [B, T] -> logits [B, T, vocab_size]."""

    def __init__(self, model: RetNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        logits, _ = self.model(tokens)
        return (logits,)


class Continue(nn.Module):
    """tokens [B, T] and a state -> logits [B, T, vocab_size] and the state after, as tensors."""

    def __init__(self, model: RetNet, retain: Retention = retention_chunkwise) -> None:
        super().__init__()
        self.model = model
        self.retain = retain

    def forward(self, tokens: Tensor, position: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
        logits, state = self.model(tokens, RetNetState(layers, position), retain=self.retain)
        return logits, state.position, *state.layers


def state_after(model: RetNet, tokens: Tensor) -> RetNetState:
    with torch.no_grad():
        return model(tokens)[1]


def arguments(model: RetNet, tokens: Tensor) -> tuple[Tensor, ...]:
    """The tokens and the state, as tensors, of a model that has read some before."""
    state = state_after(model, drawn_tokens(len(tokens), 9))
    return tokens, state.position, *state.layers


Call = Callable[..., tuple[Tensor, RetNetState]]


def results(model: RetNet, call: Call, tokens: Tensor) -> tuple[Tensor, ...]:
    """Of a call that continues another: logits, state, the gradient of every parameter."""
    logits, state = call(tokens, state_after(model, drawn_tokens(len(tokens), 5)))
    loss = logits.sin().mean() + sum(layer.cos().mean() for layer in state.layers)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return logits.detach(), state.position, *(x.detach() for x in state.layers), *gradients


@pytest.mark.parametrize(
    ("score_norm", "rotary_pairing"),
    [("none", "interleaved"), ("decay", "halves"), ("paper", "interleaved")],
)
def test_compiled(score_norm: str, rotary_pairing: str) -> None:
    """One graph for all lengths of texts."""
    model = make_model(num_layers=1, score_norm=score_norm, rotary_pairing=rotary_pairing)
    graph = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    results(model, graph, drawn_tokens(2, 20))
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in ((2, 33), (3, 70)):
            tokens = drawn_tokens(*shape)
            assert_close(results(model, graph, tokens), results(model, model, tokens))


def test_compiled_with_padding_and_segments() -> None:
    model = make_model()
    tokens = drawn_tokens(2, 12)
    mask = torch.arange(12) >= torch.tensor([[0], [5]])
    ids = torch.tensor([[0] * 7 + [1] * 5, [0] * 12])
    graph = torch.compile(model, fullgraph=True, backend="aot_eager")
    (logits, state), (expected, expected_state) = (
        call(tokens, mask=mask, segment_ids=ids) for call in (graph, model)
    )
    assert_close((logits, state.position), (expected, expected_state.position))


def test_compiled_step() -> None:
    """One graph reads token after token."""
    model = make_model(score_norm="paper")
    step = partial(model, retain=retention_recurrent)
    graph = torch.compile(step, fullgraph=True, backend="aot_eager")
    state = expected_state = state_after(model, drawn_tokens(3, 5))
    with torch.no_grad():
        graph(drawn_tokens(3, 1), state)
        with torch.compiler.set_stance("fail_on_recompile"):
            for token in drawn_tokens(4, 3, 1):
                logits, state = graph(token, state)
                expected, expected_state = step(token, expected_state)
                assert_close((logits, *state.layers), (expected, *expected_state.layers))


BATCH, LENGTH = Dim("batch", min=1), Dim("length", min=1)


def dynamic_shapes(num_layers: int, *tokens: Dim) -> dict[str, Any]:
    """Of tokens, position and layers."""
    layers = ({0: BATCH},) * num_layers
    return {"tokens": dict(enumerate(tokens)), "position": {0: BATCH}, "layers": layers}


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_exported(strict: bool, tmp_path: Path) -> None:
    """For any batch and length, through a file."""
    model = make_model(score_norm="paper")
    read, read_on = Read(model), Continue(model)
    shapes = dynamic_shapes(NUM_LAYERS, BATCH, LENGTH)
    tokens = drawn_tokens(3, 9)
    programs = (
        torch.export.export(read, (tokens,), dynamic_shapes=[shapes["tokens"]], strict=strict),
        torch.export.export(
            read_on, arguments(model, tokens), dynamic_shapes=shapes, strict=strict
        ),
    )
    path = tmp_path / "model.pt2"
    for module, program in zip((read, read_on), programs, strict=True):
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
        for shape in ((1, 1), (2, 5), (4, 150)):
            inputs = arguments(model, drawn_tokens(*shape))
            inputs = inputs[:1] if module is read else inputs
            assert_close(loaded(*inputs), module(*inputs))


def test_an_exported_model_trains() -> None:
    model = make_model()
    module = Read(model)
    tokens = drawn_tokens(2, 20)
    copy = torch.export.export(module, (tokens,)).module()
    gradients = []
    for call in (copy, module):
        (logits,) = call(tokens)
        gradients.append(torch.autograd.grad(logits.sin().mean(), list(call.parameters())))
    assert_close(*gradients)


def onnx_session(model: RetNet, path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """What onnxruntime makes of a model's step, called with tensors."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    states = [f"state_{i}" for i in range(model.config.num_layers)]
    assert names == ["tokens", "position", *states]
    after = ["logits", "next_position", *(f"next_{name}" for name in states)]
    assert [each.name for each in session.get_outputs()] == after

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(x) for x in session.run(None, feed))

    return run


@pytest.mark.parametrize(
    ("score_norm", "rotary_pairing", "decay"),
    [("paper", "interleaved", "linspace"), ("none", "halves", "equation8")],
)
@torch.no_grad()
def test_onnx_writes_the_same(
    score_norm: str, rotary_pairing: str, decay: str, tmp_path: Path
) -> None:
    """200 tokens, each the likeliest."""
    model = make_model(score_norm=score_norm, rotary_pairing=rotary_pairing, decay=decay)
    step = DecodingStep(model)
    graph = onnx_session(model, tmp_path / "step.onnx")
    actual = expected = (drawn_tokens(3, 1)[:, 0], *step.start(3))
    for _ in range(200):
        actual, expected = graph(*actual), step(*expected)
        assert_close(actual, expected)
        tokens, expected_tokens = (each[0].argmax(dim=-1) for each in (actual, expected))
        assert torch.equal(tokens, expected_tokens)
        actual, expected = (tokens, *actual[1:]), (expected_tokens, *expected[1:])


def test_a_step_reads_as_the_model_does() -> None:
    model = make_model()
    tokens = drawn_tokens(2, 7)
    step = DecodingStep(model)
    memory = step.start(2)
    for i in range(7):
        logits, *memory = step(tokens[:, i], *memory)
        assert_close((logits,), (model(tokens)[0][:, i],))
    assert_close(tuple(memory[1:]), state_after(model, tokens).layers)


@torch.no_grad()
def test_onnx_far_out_with_heads_that_hardly_forget(tmp_path: Path) -> None:
    """Angles stay fp64, and Z_n is right where 1 - gamma is 2^-68: it once was 0 / 0, since ONNX
    has no expm1.
    """
    model = make_model(
        num_layers=1, d_model=128, num_heads=64, score_norm="decay", decay="equation8"
    )
    step = DecodingStep(model)
    token, position, layer = arguments(model, drawn_tokens(2, 1)[:, 0])
    graph = onnx_session(model, tmp_path / "step.onnx")
    for far in (0, 1_000_003, 10**8):
        inputs = token, position + far, layer
        assert_close(graph(*inputs), step(*inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_onnx_of_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """It was written, and onnxruntime then said NOT_IMPLEMENTED of a MatMul."""
    with pytest.raises(ValueError, match=rf"model .* got {dtype}, .*; pass model.float\(\)"):
        export_onnx(make_model().to(dtype), tmp_path / "step.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["no/such/step.onnx", "."])
def test_onnx_to_nowhere(path: str, tmp_path: Path) -> None:
    """It once named a temporary file, after the export."""
    with pytest.raises(ValueError, match="path must be a file in a folder that exists, got"):
        export_onnx(make_model(), tmp_path / path)
