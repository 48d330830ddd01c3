"""The laws of the model: three forms that are one, at any cut, padded, packed and in any batch."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet.config import ModelConfig
from retnet.loss import next_token_loss
from retnet.model import RetNet, RetNetState, initialise_
from retnet.ops import precision, retention_chunkwise, retention_parallel, retention_recurrent
from retnet.position import Retention

FORMS: dict[str, Retention] = {
    "parallel": retention_parallel,
    "recurrent": retention_recurrent,
    "chunkwise-reference": partial(retention_chunkwise, chunk_size=5, backend="reference"),
    "chunkwise-torch": partial(retention_chunkwise, chunk_size=5, backend="torch"),
}
every_form = pytest.mark.parametrize("form", FORMS)
every_score_norm = pytest.mark.parametrize("score_norm", ["none", "decay", "paper"])
VOCAB = 23


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> RetNet:
    """A small model in evaluation mode, whose heads forget at quite different rates."""
    base: dict[str, Any] = {
        "vocab_size": VOCAB,
        "d_model": 12,
        "num_layers": 2,
        "num_heads": 2,
        "key_size": 4,
        "decay": (0.8, 0.99),
    }
    config = ModelConfig(**{**base, **changes})
    model = RetNet(config, generator=torch.Generator().manual_seed(seed))
    return model.to(dtype).eval()


def drawn_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= tolerance * expected.norm()


def assert_same_state(actual: RetNetState, expected: RetNetState, tolerance: float = 1e-12) -> None:
    assert torch.equal(actual.position, expected.position)
    for mine, theirs in zip(actual.layers, expected.layers, strict=True):
        assert_close(mine, theirs, tolerance)


# Three forms, any cut


@every_score_norm
@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 20), max_size=3).map(sorted),
    forms=st.lists(st.sampled_from(sorted(FORMS)), min_size=4, max_size=4),
    head_norm=st.sampled_from(["layernorm", "rmsnorm"]),
    rotary_pairing=st.sampled_from(["interleaved", "halves"]),
    rotary_frequencies=st.sampled_from(["torchscale", "rope"]),
    feed_forward=st.sampled_from(["gelu", "swiglu", "geglu"]),
    inner_norms=st.booleans(),
)
def test_any_form_may_continue_any_other_at_any_cut(
    score_norm: str,
    cuts: list[int],
    forms: list[str],
    head_norm: str,
    rotary_pairing: str,
    rotary_frequencies: str,
    feed_forward: str,
    inner_norms: bool,
) -> None:
    model = make_model(
        score_norm=score_norm,
        head_norm=head_norm,
        rotary_pairing=rotary_pairing,
        rotary_frequencies=rotary_frequencies,
        feed_forward=feed_forward,
        ffn_norm=inner_norms,
        embedding_norm=inner_norms,
        head_norm_eps=1e-5,
    )
    tokens = drawn_tokens(2, 20)
    expected, expected_state = model(tokens, retain=retention_parallel)
    state, pieces = None, []
    for form, start, end in zip(forms, [0, *cuts], [*cuts, 20], strict=False):
        logits, state = model(tokens[:, start:end], state, retain=FORMS[form])
        pieces.append(logits)
    assert_close(torch.cat(pieces, dim=1), expected)
    assert_same_state(state, expected_state)
    assert state.position.tolist() == [20, 20]


@every_score_norm
@every_form
def test_gradients_do_not_depend_on_the_form(form: str, score_norm: str) -> None:
    """Through two calls: the state carries gradients."""

    def grads(retain: Retention) -> list[Tensor]:
        model = make_model(score_norm=score_norm)
        tokens = drawn_tokens(2, 15)
        _, state = model(tokens[:, :6], retain=retain)
        logits, _ = model(tokens[:, 6:], state, retain=retain)
        next_token_loss(logits[:, :-1], tokens[:, 7:]).backward()
        return [x.grad for x in model.parameters()]

    expected = grads(retention_recurrent)
    for mine, theirs in zip(grads(FORMS[form]), expected, strict=True):
        assert_close(mine, theirs, 1e-6)  # The loss itself is summed in fp32.


def test_the_default_form_is_chunkwise() -> None:
    model, tokens = make_model(), drawn_tokens(2, 9)
    assert torch.equal(model(tokens)[0], model(tokens, retain=retention_chunkwise)[0])


def test_no_tokens_and_no_rows() -> None:
    model = make_model(score_norm="paper")
    _, state = model(drawn_tokens(2, 7))
    logits, after = model(drawn_tokens(2, 0), state)
    assert logits.shape == (2, 0, VOCAB)
    assert_same_state(after, state, 0)
    logits, after = model(drawn_tokens(0, 4))
    assert logits.shape == (0, 4, VOCAB)
    assert after.position.shape == (0,)


# What may depend on what


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_form
def test_a_later_token_changes_nothing_earlier(form: str, dtype: torch.dtype) -> None:
    """To the bit: the head norm is per token too."""
    model = make_model(dtype=dtype, score_norm="paper", decay="linspace")
    tokens, other = drawn_tokens(2, 21), (drawn_tokens(2, 21) + 1) % VOCAB
    expected, _ = model(tokens, retain=FORMS[form])
    for cut in (1, 5, 12, 20):
        changed = torch.cat([tokens[:, :cut], other[:, cut:]], dim=1)
        actual, _ = model(changed, retain=FORMS[form])
        assert torch.equal(actual[:, :cut], expected[:, :cut])
        assert not (actual[:, cut:] == expected[:, cut:]).all(dim=-1).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_form
def test_other_rows_change_nothing(form: str, dtype: torch.dtype) -> None:
    """To the bit, state and all."""
    model = make_model(dtype=dtype)
    tokens, other = drawn_tokens(3, 21), drawn_tokens(3, 21, seed=1)
    other[1] = tokens[1]
    expected, expected_state = model(tokens, retain=FORMS[form])
    actual, state = model(other, retain=FORMS[form])
    assert torch.equal(actual[1], expected[1])
    for mine, theirs in zip(state.layers, expected_state.layers, strict=True):
        assert torch.equal(mine[1], theirs[1])
    assert not torch.equal(actual[0], expected[0])


@every_score_norm
@every_form
def test_left_padding_changes_nothing(form: str, score_norm: str) -> None:
    model = make_model(score_norm=score_norm, bias=True)
    lengths, width = (17, 1, 9), 23
    tokens = drawn_tokens(3, width)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    logits, state = model(tokens, mask=mask, retain=FORMS[form])
    for row, length in enumerate(lengths):
        alone, alone_state = model(tokens[row : row + 1, -length:], retain=FORMS[form])
        assert_close(logits[row : row + 1, -length:], alone)
        assert_same_state(state.rows([row]), alone_state)


@every_score_norm
@every_form
def test_packed_documents_are_separate_documents(form: str, score_norm: str) -> None:
    """The state that comes in belongs to the first, the one handed out to the last."""
    model = make_model(score_norm=score_norm)
    _, before = model(drawn_tokens(2, 6, seed=1))
    tokens = drawn_tokens(2, 20)
    ids = torch.tensor([[3] * 7 + [1] + [3] * 12] * 2)
    logits, state = model(tokens, before, segment_ids=ids, retain=FORMS[form])
    first, _ = model(tokens[:, :7], before, retain=FORMS[form])
    second, _ = model(tokens[:, 7:8], retain=FORMS[form])
    third, expected_state = model(tokens[:, 8:], retain=FORMS[form])
    assert_close(logits, torch.cat([first, second, third], dim=1))
    assert_same_state(state, expected_state)
    more = drawn_tokens(2, 5, seed=2)
    assert_close(model(more, state)[0], model(more, expected_state)[0])


def test_packed_rows_may_differ_and_be_padded() -> None:
    """Boundaries at different places in each row, padding on the left of one."""
    model = make_model(score_norm="paper")
    tokens = drawn_tokens(2, 12)
    ids = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [1] * 3])
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, :4] = False
    logits, state = model(tokens, segment_ids=ids, mask=mask)
    for row, start, cut in ((0, 0, 5), (1, 4, 9)):
        first, _ = model(tokens[row : row + 1, start:cut])
        second, expected_state = model(tokens[row : row + 1, cut:])
        assert_close(logits[row : row + 1, start:], torch.cat([first, second], dim=1))
        assert_same_state(state.rows([row]), expected_state)


# State


def test_rows_of_a_state_go_on_as_the_rows_did() -> None:
    """Rows that have read 4, 9 and 13 tokens, in one batch, repeated and in another order."""
    model = make_model()
    states = [model(drawn_tokens(1, n, seed=n))[1] for n in (4, 9, 13)]
    together = RetNetState.stack(states)
    assert together.position.tolist() == [4, 9, 13]
    chosen = together.rows([2, 0, 2])
    assert chosen.position.tolist() == [13, 4, 13]
    tokens = drawn_tokens(3, 6)
    logits, after = model(tokens, chosen)
    for row, source in enumerate((2, 0, 2)):
        alone, alone_state = model(tokens[row : row + 1], states[source])
        assert_close(logits[row : row + 1], alone)
        assert_same_state(after.rows([row]), alone_state)


def test_rows_by_tensors() -> None:
    """Indices or a mask; a mask of rows to keep is no list of zeros and ones."""
    _, state = make_model()(drawn_tokens(3, 5))
    expected = state.rows([0, 2])
    assert_same_state(state.rows(torch.tensor([0, 2])), expected, 0)
    assert_same_state(state.rows(torch.tensor([True, False, True])), expected, 0)
    assert state.rows([]).position.shape == (0,)


def test_a_call_leaves_the_state_before_it_alone() -> None:
    model = make_model()
    with torch.no_grad():
        _, state = model(drawn_tokens(2, 5))
        before = copy.deepcopy(state)
        for form in FORMS.values():
            _, after = model(drawn_tokens(2, 5), state, retain=form)
            assert_same_state(state, before, 0)
            assert after.position.tolist() == [10, 10]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_state_is_fp32(dtype: torch.dtype) -> None:
    model = make_model(dtype=dtype, score_norm="paper")
    _, state = model(drawn_tokens(3, 5))
    assert {layer.dtype for layer in state.layers} == {torch.float32}
    assert state.num_bytes == 3 * 4 * model.config.state_numbers
    assert state.position.dtype == torch.int64


# Precision


def seen_log_decays(model: RetNet) -> list[Tensor]:
    seen: list[Tensor] = []

    def spy(*arguments: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        seen.append(arguments[3])
        return retention_chunkwise(*arguments, **options)

    model(drawn_tokens(1, 3), retain=spy)
    return seen


def test_bf16_weights_leave_every_gamma_alone() -> None:
    """In bf16 every gamma above 0.998 would be 1; in fp32 those of heads above the twentieth."""
    model = make_model(d_model=64, num_heads=32, key_size=2, decay="equation8")
    expected = seen_log_decays(model)
    actual = seen_log_decays(model.to(torch.bfloat16))
    assert len(actual) == model.config.num_layers
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(mine, theirs)
        assert (mine < 0).all()


@pytest.mark.parametrize("fast_bf16", [False, True])
def test_bf16_weights_leave_every_angle_alone(
    fast_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bf16 model at position 100,000 is its own weights in fp64, up to bf16's rounding; angles
    or decays in bf16 would make it another model."""
    monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: fast_bf16)
    half = make_model(dtype=torch.bfloat16, d_model=64, key_size=32, decay="linspace")
    exact = copy.deepcopy(half).double()
    tokens = drawn_tokens(2, 40)
    _, start = exact(drawn_tokens(2, 30, seed=1))
    start = replace(start, position=start.position + 100_000)
    half_start = RetNetState(tuple(layer.float() for layer in start.layers), start.position)
    expected, _ = exact(tokens, start)
    actual, _ = half(tokens, half_start)
    assert_close(actual.double(), expected, 2e-2)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_meta_build_with_loaded_weights_is_the_model(tie_embeddings: bool) -> None:
    model = make_model(dtype=torch.float32, tie_embeddings=tie_embeddings, head_norm_affine=True)
    with torch.device("meta"):
        loaded = RetNet(model.config)
    assert {x.device.type for x in loaded.parameters()} == {"meta"}
    loaded.load_state_dict(model.state_dict(), assign=True)
    tokens = drawn_tokens(2, 9)
    assert torch.equal(loaded.eval()(tokens)[0], model(tokens)[0])
    emptied = RetNet(model.config).to_empty(device="cpu")
    emptied.load_state_dict(model.state_dict())
    assert torch.equal(emptied.eval()(tokens)[0], model(tokens)[0])


@every_form
def test_a_meta_model_gives_shapes(form: str) -> None:
    """To count without memory; log_decay stays on the CPU while the rest is elsewhere."""
    with torch.device("meta"):
        model = RetNet(make_model().config)
        tokens = torch.zeros(2, 7, dtype=torch.int64)
    logits, state = model(tokens, retain=FORMS[form])
    assert logits.shape == (2, 7, VOCAB)
    assert state.num_bytes == 2 * 4 * model.config.state_numbers


# Weights


def test_the_same_generator_gives_the_same_weights() -> None:
    for mine, theirs in zip(make_model(1).parameters(), make_model(1).parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(
        make_model(1).backbone.embed_tokens.weight, make_model(2).backbone.embed_tokens.weight
    )


def test_drawing_weights_leaves_the_default_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    make_model()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("feed_forward", ["gelu", "swiglu", "geglu"])
def test_initial_weights(feed_forward: str) -> None:
    """Deviations and bounds of the table in `initialise_`, within five standard errors."""
    config = ModelConfig(
        vocab_size=500,
        d_model=64,
        num_layers=1,
        bias=True,
        feed_forward=feed_forward,
        tie_embeddings=False,
        head_norm_affine=True,
        ffn_norm=True,
        embedding_norm=True,
    )
    model = RetNet(config, generator=torch.Generator().manual_seed(0))
    for name, x in model.named_parameters():
        if name.endswith("bias"):
            assert (x == 0).all(), name
        elif "norm" in name:
            assert (x == 1).all(), name
        elif name in ("backbone.embed_tokens.weight", "lm_head.weight"):
            assert x.std().item() == pytest.approx(64**-0.5, rel=5 / math.sqrt(2 * x.numel()))
            assert x.abs().max() > 3 * 64**-0.5
        else:
            fan_out, fan_in = x.shape
            gain = 1.0 if "out_proj" in name else 2**-2.5
            bound = gain * math.sqrt(6 / (fan_in + fan_out))
            bound = fan_in**-0.5 if "feed_forward" in name else bound
            assert 0.99 * bound < x.abs().max() <= bound, name
            expected = bound / math.sqrt(3)
            assert x.std().item() == pytest.approx(expected, rel=5 / math.sqrt(x.numel())), name


def test_initialise_draws_every_weight_again() -> None:
    model = make_model(tie_embeddings=False)
    expected = {
        name: x.clone() for name, x in make_model(7, tie_embeddings=False).state_dict().items()
    }
    initialise_(model.float(), torch.Generator().manual_seed(7))
    for name, x in model.state_dict().items():
        assert_close(x.double(), expected[name], 1e-6)


def test_tied_and_untied_heads() -> None:
    tied, untied = make_model(), make_model(tie_embeddings=False)
    assert "lm_head.weight" not in tied.state_dict()
    features, _ = tied.features(drawn_tokens(1, 4))
    assert_close(tied.logits(features), features @ tied.backbone.embed_tokens.weight.T)
    features, _ = untied.features(drawn_tokens(1, 4))
    assert_close(untied.logits(features), features @ untied.lm_head.weight.T)
    assert_close(untied(drawn_tokens(1, 4))[0], untied.logits(features), 0)


def test_the_last_features_are_normalised() -> None:
    """Pre-norm blocks end in a norm."""
    features, _ = make_model(norm_eps=0.0).features(drawn_tokens(2, 5))
    assert_close(features.mean(dim=-1) + 1, torch.ones(2, 5).double())
    assert_close(features.var(dim=-1, correction=0), torch.ones(2, 5).double())


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_embedding_norm_comes_before_the_first_block(norm: str) -> None:
    """On embeddings that a caller brings, too: it belongs to the backbone."""
    model = make_model(embedding_norm=True, norm=norm)
    without = make_model(norm=norm)
    without.load_state_dict(model.state_dict(), strict=False)
    embeddings = model.backbone.embed(drawn_tokens(2, 5))
    normed = model.backbone.embedding_norm(embeddings)
    assert_close(normed.square().mean(dim=-1), torch.ones(2, 5).double(), 1e-3)
    expected, _ = without.backbone(normed)
    assert_close(model.backbone(embeddings)[0], expected, 0)
    assert_close(model.features(drawn_tokens(2, 5))[0], expected, 0)


def test_model_has_no_buffers() -> None:
    assert list(make_model(score_norm="paper", head_norm_affine=True).buffers()) == []


# Loss


@pytest.mark.parametrize("ignored", [-100, 0])
def test_loss_is_the_mean_of_minus_log_probabilities(ignored: int) -> None:
    """Over all targets, and over those that are not ignored."""
    logits, targets = torch.randn(2, 3, VOCAB), 1 + drawn_tokens(2, 3) % (VOCAB - 1)
    losses = -logits.double().log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]
    actual = next_token_loss(logits, targets, ignore_index=ignored)
    assert actual.item() == pytest.approx(losses.mean().item(), rel=1e-6)
    targets[0, 1:] = ignored
    actual = next_token_loss(logits, targets, ignore_index=ignored)
    assert actual.item() == pytest.approx((losses[0, 0] + losses[1].sum()).item() / 4, rel=1e-6)


def test_loss_of_bf16_logits_is_summed_in_fp32() -> None:
    logits = torch.zeros(1, 1000, 256, dtype=torch.bfloat16)
    loss = next_token_loss(logits, torch.zeros(1, 1000, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(256), rel=1e-6)


def test_loss_of_an_untrained_model() -> None:
    """Scores of unit variance that know nothing: log(vocabulary) + 1/2."""
    model = make_model(d_model=64, tie_embeddings=False)
    tokens = drawn_tokens(8, 65)
    logits, _ = model(tokens[:, :-1])
    loss = next_token_loss(logits, tokens[:, 1:]).item()
    assert loss == pytest.approx(math.log(VOCAB) + 0.5, abs=0.25)


# Bad input

MODEL = make_model()
STATE = MODEL(drawn_tokens(2, 3))[1]
TOKENS = drawn_tokens(2, 5)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one row without its batch": (
        {"tokens": TOKENS[0]},
        r"tokens must be integers \[B, T\].*\[5\]",
    ),
    "tokens of floats": ({"tokens": TOKENS.float()}, "tokens must be integers .*torch.float32"),
    "a mask of integers": ({"mask": torch.ones_like(TOKENS)}, "mask must be bool .*torch.int64"),
    "a mask of another length": (
        {"mask": torch.ones(2, 6, dtype=torch.bool)},
        r"mask must be bool \[B, T\] = \[2, 5\].*\[2, 6\]",
    ),
    "segment_ids of floats": ({"segment_ids": TOKENS.float()}, "segment_ids must be integers"),
    "segment_ids of another length": (
        {"segment_ids": torch.zeros(2, 4, dtype=torch.int64)},
        r"segment_ids must be integers \[B, T\] = \[2, 5\].*\[2, 4\]",
    ),
    "one row of segment_ids": (
        {"segment_ids": torch.zeros(5, dtype=torch.int64)},
        "segment_ids must be integers",
    ),
    "a state of other layers": (
        {"state": RetNetState(STATE.layers[:1], STATE.position)},
        "state must have 2 layers and 2 rows, got 1 and 2; it belongs to another model",
    ),
    "a state of other rows": (
        {"state": STATE.rows([0])},
        "state must have 2 layers and 2 rows, got 2 and 1",
    ),
    "a state of other heads": (
        {"state": RetNetState(tuple(x[:, :1] for x in STATE.layers), STATE.position)},
        r"state must be \[B, H, K, V\] = \[2, 2, 4, 8\], got \[2, 1, 4, 8\]",
    ),
    "a state of a fp32 model": (
        {"state": RetNetState(tuple(x.float() for x in STATE.layers), STATE.position)},
        "state must be torch.float64 for torch.float64 inputs, got torch.float32",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_argument(bad: str) -> None:
    changes, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        MODEL(**{"tokens": TOKENS, **changes})


def test_stacking_nothing() -> None:
    with pytest.raises(ValueError, match="states must hold at least one state, got none"):
        RetNetState.stack([])
