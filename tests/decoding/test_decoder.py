"""A decoder against `generation.step`, and the law that rows do not touch, bit for bit."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.config import ModelConfig
from retnet.decoding import Decoder, KernelName
from retnet.generation import prefill, step
from retnet.model import RetNet, RetNetState
from tests.cpus import needs_compiler, rows_are_independent

VOCAB = 67
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "swiglu": {"feed_forward": "swiglu", "tie_embeddings": False},
    "geglu": {"feed_forward": "geglu", "ffn_norm": True, "norm": "rmsnorm"},
    "everything": {
        "bias": True,
        "score_norm": "paper",
        "head_norm_affine": True,
        "embedding_norm": True,
        "ffn_norm": True,
        "rotary_pairing": "halves",
        "rotary_frequencies": "rope",
    },
    "decay norm": {"score_norm": "decay", "head_norm": "rmsnorm", "head_norm_affine": True},
    "no decay": {"decay": "none", "score_norm": "paper", "head_norm": "rmsnorm"},
    "odd sizes": {"key_size": 6, "value_size": 10, "ffn_size": 37, "score_norm": "paper"},
    "one head": {"num_heads": 1, "decay": (0.9,)},
}


def make_model(dtype: torch.dtype = torch.float32, **changes: Any) -> RetNet:
    base: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 32, "num_layers": 2, "num_heads": 2}
    generator = torch.Generator().manual_seed(0)
    model = RetNet(ModelConfig(**{**base, **changes}), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which begin as ones and zeros
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.to(dtype).eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def states_of_lengths(model: RetNet, lengths: list[int]) -> RetNetState:
    """Rows that have read so many tokens each."""
    return RetNetState.stack([prefill(model, drawn(1, n, seed=n))[1] for n in lengths])


def copy_of(state: RetNetState) -> RetNetState:
    return RetNetState(tuple(layer.clone() for layer in state.layers), state.position.clone())


def assert_near(
    actual: Tensor, expected: Tensor, dtype: torch.dtype, tolerance: float | None = None
) -> None:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < (TOLERANCES[dtype] if tolerance is None else tolerance)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


EACH_KERNEL = [
    *(pytest.param("torch", dtype, id=f"torch-{dtype}") for dtype in TOLERANCES),
    *(
        pytest.param("native", dtype, id=f"native-{dtype}", marks=needs_compiler)
        for dtype in (torch.float32, torch.bfloat16)
    ),
]


@pytest.mark.parametrize("int8", [False, True], ids=["as it is", "int8"])
@pytest.mark.parametrize(("kernel", "dtype"), EACH_KERNEL)
@pytest.mark.parametrize("changes", list(CONFIGURATIONS.values()), ids=list(CONFIGURATIONS))
def test_equals_step(
    changes: dict[str, Any], dtype: torch.dtype, kernel: KernelName, int8: bool
) -> None:
    """Rows at positions of their own, in any order, some of them left alone.

    With int8 the model has the rounded weights from then on: prompts and steps agree.
    """
    model = make_model(dtype, **changes)
    decoder = Decoder(model, kernel=kernel, int8=int8)
    assert (decoder.kernel_name, decoder.why_not_native) == (kernel, None)
    state = states_of_lengths(model, [5, 1, 40, 2, 17])
    rows, tokens = torch.tensor([3, 0, 4]), drawn(2, 3)
    # The native int8 products take activations in 16 bits.
    coarse = int8 and kernel == "native" and dtype == torch.float32
    ours = copy_of(state)
    expected = state.rows(rows)
    for each in tokens:
        logits = decoder.step_(each, ours, rows)
        expected_logits, expected = step(model, each, expected)
        assert_near(logits, expected_logits, dtype, 5e-4 if coarse else None)
        assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for layer, expected_layer, before in zip(
        ours.layers, expected.layers, state.layers, strict=True
    ):
        assert_near(layer[rows], expected_layer, dtype, 5e-4 if coarse else None)
        assert torch.equal(layer[[1, 2]], before[[1, 2]])
    assert ours.position.tolist() == [7, 1, 40, 4, 19]


@pytest.mark.parametrize(("kernel", "dtype"), EACH_KERNEL)
@pytest.mark.parametrize("changes", list(CONFIGURATIONS.values()), ids=list(CONFIGURATIONS))
def test_reads_prompts_beside_single_tokens(
    changes: dict[str, Any], dtype: torch.dtype, kernel: KernelName
) -> None:
    """Several tokens of some rows and one of others, and scores after those that were named."""
    model = make_model(dtype, **changes)
    decoder = Decoder(model, kernel=kernel)
    state, rows, counts = states_of_lengths(model, [5, 1, 40, 2]), [2, 1, 3], [9, 1, 4]
    expected = [
        model(tokens[None], state.rows([row]))
        for row, tokens in zip(rows, drawn(14).split(counts), strict=True)
    ]
    ours = copy_of(state)
    logits = decoder.step_(drawn(14), ours, torch.tensor(rows), counts, [13, 4, 9])
    last = decoder.step_(drawn(14), copy_of(state), torch.tensor(rows), counts)
    every = torch.cat([scores[0] for scores, _ in expected])
    assert_near(logits, every[[13, 4, 9]], dtype)
    assert_near(last, every[[8, 9, 13]], dtype)
    none = decoder.step_(drawn(14), copy_of(state), torch.tensor(rows), counts, [])
    assert none.shape == (0, VOCAB) and none.dtype == logits.dtype
    for row, (_, after) in zip(rows, expected, strict=True):
        for layer, expected_layer in zip(ours.layers, after.layers, strict=True):
            assert_near(layer[row], expected_layer[0], dtype)
    for layer, before in zip(ours.layers, state.layers, strict=True):
        assert torch.equal(layer[0], before[0])
    assert ours.position.tolist() == [5, 2, 49, 6]


@pytest.mark.parametrize(
    ("kernel", "dtype", "int8"),
    [
        *(
            pytest.param("torch", dtype, False, id=f"torch-{dtype}", marks=rows_are_independent)
            for dtype in TOLERANCES
        ),
        *(
            pytest.param("native", dtype, int8, id=f"native-{dtype}-{int8}", marks=needs_compiler)
            for dtype in (torch.float32, torch.bfloat16)
            for int8 in (False, True)
        ),
    ],
)
@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 128, "feed_forward": "swiglu", "norm": "rmsnorm", "head_norm": "rmsnorm"},
        {"d_model": 96, "score_norm": "paper", "num_heads": 3, "ffn_size": 1030},
        CONFIGURATIONS["odd sizes"],
    ],
    ids=["even", "uneven", "odd"],
)
def test_rows_do_not_touch(
    changes: dict[str, Any], dtype: torch.dtype, kernel: KernelName, int8: bool, threads: int
) -> None:
    """The same bits alone as among any number of others, in any order."""
    decoder = Decoder(make_model(dtype, **changes), kernel=kernel, int8=int8)
    num_rows = 64
    state = decoder.new_state(num_rows)
    generator = torch.Generator().manual_seed(1)
    for layer in state.layers:
        layer.normal_(generator=generator)
    state.position.random_(0, 5000, generator=generator)
    tokens = drawn(num_rows)
    alone = copy_of(state)
    expected = torch.cat(
        [decoder.step_(tokens[row : row + 1], alone, torch.tensor([row])) for row in range(64)]
    )
    for count in (2, 3, 5, 7, 8, 9, 13, 16, 31, 33, 64):
        rows = torch.randperm(num_rows, generator=generator)[:count]
        together = copy_of(state)
        assert torch.equal(decoder.step_(tokens[rows], together, rows), expected[rows])
        for layer, layer_alone in zip(together.layers, alone.layers, strict=True):
            assert torch.equal(layer[rows], layer_alone[rows])


def test_no_weight_is_in_memory_twice() -> None:
    """The model's parameters are rows of the merged matrices, also for a second decoder."""
    model = make_model(feed_forward="swiglu", bias=True)
    Decoder(model)
    layer: Any = model.backbone.layers[0]
    mixer = layer.mixer
    storage = mixer.q_proj.weight.untyped_storage().data_ptr()
    for linear in (mixer.k_proj, mixer.v_proj, mixer.g_proj):
        assert linear.weight.untyped_storage().data_ptr() == storage
    Decoder(model)
    assert mixer.q_proj.weight.untyped_storage().data_ptr() == storage


def test_the_model_reads_as_before() -> None:
    """Merging changes no result of the model, and tied matrices stay one."""
    model = make_model(bias=True)
    tokens = drawn(2, 9)
    before = model(tokens)[0]
    decoder = Decoder(model)
    torch.testing.assert_close(decoder.model(tokens)[0], before, rtol=1e-5, atol=1e-5)
    assert decoder.model.head_weight is decoder.model.backbone.embed_tokens.weight


@pytest.mark.parametrize(
    ("tokens", "rows", "message"),
    [
        ([1, 2], [0, 0], "rows must be different"),
        ([1], [4], r"in \[0, 4\)"),
        ([1], [-1], r"in \[0, 4\)"),
        ([VOCAB], [0], "tokens must be ids"),
        ([1, 2], [0], "counts must be at least 1 for each row"),
        ([], [], "tokens must be int64"),
        ([1], [], "rows must be int64"),
    ],
)
def test_bad_rows(tokens: list[int], rows: list[int], message: str) -> None:
    decoder = Decoder(make_model())
    state = decoder.new_state(4)
    with pytest.raises(ValueError, match=message):
        decoder.step_(
            torch.tensor(tokens, dtype=torch.int64), state, torch.tensor(rows, dtype=torch.int64)
        )


@pytest.mark.parametrize(
    ("counts", "wanted", "message"),
    [
        ([3], None, r"counts .* got \[3\] for 2 rows and 3 tokens"),
        ([3, 0], None, "counts must be at least 1"),
        ([1, 1], None, "sum to the number of tokens"),
        ([1, 2], [3], r"wanted must be in \[0, 3\), got \[3\]"),
        ([1, 2], [-1], "wanted must be in"),
    ],
)
def test_bad_counts(counts: list[int], wanted: list[int] | None, message: str) -> None:
    decoder = Decoder(make_model())
    with pytest.raises(ValueError, match=message):
        decoder.step_(drawn(3), decoder.new_state(2), torch.tensor([0, 1]), counts, wanted)


def test_another_models_state() -> None:
    decoder, other = Decoder(make_model()), Decoder(make_model(num_layers=3))
    with pytest.raises(ValueError, match="belongs to another model"):
        decoder.step_(torch.tensor([1]), other.new_state(1), torch.tensor([0]))


def test_bad_models() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="must not be training"):
        Decoder(model.train())
    with pytest.raises(ValueError, match="all fp32, bf16 or fp64"):
        Decoder(model.half().eval())
    with pytest.raises(ValueError, match=r"models on the CPU, got torch\.float64"):
        Decoder(make_model(torch.float64), kernel="native")
    with pytest.raises(ValueError, match="kernel must be one of auto, native, triton, torch"):
        Decoder(make_model(), kernel="fast")  # type: ignore[arg-type]


def test_auto_says_why_not() -> None:
    decoder = Decoder(make_model(torch.float64))
    assert decoder.kernel_name == "torch"
    assert "got torch.float64" in str(decoder.why_not_native)
