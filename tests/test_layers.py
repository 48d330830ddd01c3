"""The layers, each against its equation written out with complex numbers and loops, in fp64."""

import math
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import ModelConfig
from retnet.layers import FeedForward, MultiScaleRetention, RetNetBlock
from retnet.ops import retention_chunkwise, retention_parallel, retention_recurrent
from retnet.position import Retention, TokenContext, make_context

FORMS: dict[str, Retention] = {
    "parallel": retention_parallel,
    "recurrent": retention_recurrent,
    "chunkwise-reference": partial(retention_chunkwise, chunk_size=5, backend="reference"),
    "chunkwise-torch": partial(retention_chunkwise, chunk_size=5, backend="torch"),
}
GAMMAS = (0.9, 0.99)
Layer = TypeVar("Layer", bound=nn.Module)
every_form = pytest.mark.parametrize("form", FORMS)
every_score_norm = pytest.mark.parametrize("score_norm", ["none", "decay", "paper"])


def make_config(**changes: Any) -> ModelConfig:
    base: dict[str, Any] = {"d_model": 12, "num_heads": 2, "key_size": 4, "decay": GAMMAS}
    return ModelConfig(**{**base, **changes})


def randomised(layer: Layer, scale: float = 1.0) -> Layer:
    """The layer in fp64 with every parameter drawn anew, biases and norms too."""
    rng = torch.Generator().manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, scale * parameter.shape[-1] ** -0.5, generator=rng)
    return layer


def drawn(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def context_of(config: ModelConfig, tokens: int, retain: Retention) -> TokenContext:
    positions = torch.arange(tokens)[None]
    return make_context(
        config, positions, mask=None, segment_ids=None, retain=retain, dtype=torch.float64
    )


def heads_by_hand(layer: MultiScaleRetention, x: Tensor) -> tuple[Tensor, Tensor]:
    """The scores q_n e^(in theta) . k_m e^(im theta) of Eq. 4, undecayed, and the values.

    x [B, T, D] -> [H, B, T, T] and [H, B, T, V]
    """
    config = layer.config
    pairs = config.key_size // 2
    last = 1 if config.rotary_frequencies == "torchscale" else (pairs - 1) / pairs
    theta = 10_000.0 ** -torch.linspace(0, last, pairs, dtype=torch.float64)
    turn = torch.polar(torch.ones(()).double(), torch.arange(x.shape[1])[:, None] * theta)

    def complex_heads(projection: nn.Linear) -> Tensor:
        y = projection(x).unflatten(-1, (config.num_heads, -1))
        if config.rotary_pairing == "interleaved":
            first, second = y[..., 0::2], y[..., 1::2]
        else:
            first, second = y[..., :pairs], y[..., pairs:]
        return torch.complex(first, second).permute(2, 0, 1, 3) * turn

    q, k = complex_heads(layer.q_proj), complex_heads(layer.k_proj)
    scores = torch.einsum("hbnk,hbmk->hbnm", q, k.conj()).real
    values = layer.v_proj(x).unflatten(-1, (config.num_heads, -1)).permute(2, 0, 1, 3)
    return scores, values


def decay_by_hand(tokens: int) -> Tensor:
    """D of Eq. 5, [H, 1, T, T]."""
    D = torch.zeros(len(GAMMAS), 1, tokens, tokens, dtype=torch.float64)
    for head, gamma in enumerate(GAMMAS):
        for n in range(tokens):
            for m in range(n + 1):
                D[head, 0, n, m] = gamma ** (n - m)
    return D


def retention_by_hand(layer: MultiScaleRetention, x: Tensor) -> tuple[Tensor, float]:
    """Each head's output [H, B, T, V] with the config's score norm, and how often a row sum is
    what it is divided by."""
    config = layer.config
    scores, values = heads_by_hand(layer, x)
    D = decay_by_hand(x.shape[1])
    scores = scores / math.sqrt(config.key_size)
    clamped = 0.0
    if config.score_norm == "decay":
        D = D / D.sum(dim=-1, keepdim=True).sqrt()
    R = scores * D
    if config.score_norm == "paper":  # Section 2.2, one after the other.
        D = D / D.sum(dim=-1, keepdim=True).sqrt()
        R = scores * D
        row_sums = R.sum(dim=-1, keepdim=True).abs()
        clamped = (row_sums > 1).double().mean().item()
        R = R / row_sums.clamp(min=1)
    return R @ values, clamped


def gated_by_hand(layer: MultiScaleRetention, x: Tensor, heads: Tensor) -> Tensor:
    """Eq. 8 from the heads' outputs on."""
    config = layer.config
    mean = heads.mean(dim=-1, keepdim=True) if config.head_norm == "layernorm" else 0.0
    variance = (heads - mean).square().mean(dim=-1, keepdim=True)
    Y = (heads - mean) / (variance + config.head_norm_eps).sqrt()
    if config.head_norm_affine:
        Y = Y * layer.head_norm.weight
        Y = Y + layer.head_norm.bias if config.head_norm == "layernorm" else Y
    gate = layer.g_proj(x)
    return layer.out_proj(gate * gate.sigmoid() * Y.permute(1, 2, 0, 3).flatten(2))


CONFIGS: dict[str, dict[str, Any]] = {
    "paper's": {},
    "score norm decay": {"score_norm": "decay"},
    "score norm paper": {"score_norm": "paper"},
    "score norm paper, larger epsilon": {"score_norm": "paper", "head_norm_eps": 1e-2},
    "rotated in halves, as RoPE": {"rotary_pairing": "halves", "rotary_frequencies": "rope"},
    "rms heads, affine": {"head_norm": "rmsnorm", "head_norm_affine": True},
    "affine, biases, other sizes": {
        "head_norm_affine": True,
        "bias": True,
        "key_size": 6,
        "value_size": 5,
        "score_norm": "paper",
    },
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@every_form
def test_retention_is_equation_8(form: str, changes: dict[str, Any]) -> None:
    """Outputs and every parameter's gradient, at the epsilon of the configuration.

    The normalisers of score_norm "paper" are taken one after the other, as the paper has them, and
    nothing is detached. The weights are such that its clamp holds for some rows and not for others.
    """
    config = make_config(**changes)
    layer = randomised(MultiScaleRetention(config), scale=2.0)
    x, weight = drawn(2, 17, 12), drawn(2, 17, 12).flip(0)
    actual, _ = layer(x, context_of(config, 17, FORMS[form]))
    heads, clamped = retention_by_hand(layer, x)
    assert 0.1 < clamped < 0.9 or config.score_norm != "paper"
    expected = gated_by_hand(layer, x, heads)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)

    parameters = list(layer.parameters())
    actual_grads = torch.autograd.grad((actual * weight).sum(), parameters)
    expected_grads = torch.autograd.grad((expected * weight).sum(), parameters)
    for mine, theirs in zip(actual_grads, expected_grads, strict=True):
        assert (mine - theirs).norm() <= 1e-11 * theirs.norm()


def test_score_norms_vanish_in_the_head_norm_without_epsilon() -> None:
    """The paper's claim, which holds at epsilon 0 only."""

    def output(score_norm: str, eps: float) -> Tensor:
        config = make_config(score_norm=score_norm, head_norm_eps=eps)
        layer = randomised(MultiScaleRetention(config))
        return layer(drawn(2, 9, 12), context_of(config, 9, retention_parallel))[0]

    for score_norm in ("decay", "paper"):
        torch.testing.assert_close(output(score_norm, 0), output("none", 0), rtol=1e-9, atol=1e-10)
        assert not torch.allclose(output(score_norm, 1e-2), output("none", 1e-2), rtol=1e-4)


@every_score_norm
def test_state_has_one_column_more_for_row_sums(score_norm: str) -> None:
    config = make_config(score_norm=score_norm)
    layer = randomised(MultiScaleRetention(config))
    _, state = layer(drawn(3, 5, 12), context_of(config, 5, retention_chunkwise))
    assert state.shape == (3, 2, 4, 8 + (score_norm == "paper"))


def test_heads_are_normalised_one_by_one() -> None:
    """Scaling one head's values leaves the norm's output as it was; the other head's too."""
    config = make_config(head_norm_eps=0.0)
    layer = randomised(MultiScaleRetention(config))
    context = context_of(config, 6, retention_parallel)
    expected, _ = layer(drawn(1, 6, 12), context)
    with torch.no_grad():
        layer.v_proj.weight[:8] *= 1_000
    actual, _ = layer(drawn(1, 6, 12), context)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@every_score_norm
@every_form
def test_a_padded_token_leaves_the_state_alone(form: str, score_norm: str) -> None:
    """Biases too: they would give a padded token keys and values of its own."""
    config = make_config(score_norm=score_norm, bias=True)
    layer = randomised(MultiScaleRetention(config))
    context = context_of(config, 5, FORMS[form])
    mask = torch.zeros(1, 5, dtype=torch.bool)
    out, state = layer(drawn(1, 5, 12), replace(context, mask=mask))
    assert torch.equal(state, torch.zeros_like(state))
    assert out.isfinite().all()


@every_score_norm
@every_form
def test_padding_that_is_no_number_stays_where_it_is(form: str, score_norm: str) -> None:
    """At epsilon 0 a padded token's head norm is 0 / 0; later tokens must not see it."""
    config = make_config(score_norm=score_norm, head_norm_eps=0.0)
    layer = randomised(MultiScaleRetention(config))
    context = context_of(config, 9, FORMS[form])
    mask = torch.arange(9)[None] >= 3
    x = drawn(1, 9, 12)
    expected, expected_state = layer(x, replace(context, mask=mask))
    broken = torch.where(mask[..., None], x, torch.nan)
    actual, state = layer(broken, replace(context, mask=mask))
    assert torch.equal(actual[:, 3:], expected[:, 3:])
    assert torch.equal(state, expected_state)
    assert expected[:, 3:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("affine", [False, True])
@every_score_norm
def test_every_configuration_runs_in_every_dtype(
    score_norm: str, affine: bool, head_norm: str, dtype: torch.dtype
) -> None:
    """Outputs and gradients in the dtype of the weights, the state fp32."""
    config = make_config(score_norm=score_norm, head_norm=head_norm, head_norm_affine=affine)
    layer = randomised(MultiScaleRetention(config))
    context = context_of(config, 7, retention_chunkwise)
    exact, _ = layer(drawn(2, 7, 12), context)
    context = make_context(
        config,
        torch.arange(7)[None],
        mask=None,
        segment_ids=None,
        retain=retention_chunkwise,
        dtype=dtype,
    )
    layer = layer.to(dtype)
    out, state = layer(drawn(2, 7, 12).to(dtype), context)
    assert (out.dtype, state.dtype) == (dtype, torch.float32)
    assert (out.double() - exact).norm() < 20 * torch.finfo(dtype).eps * exact.norm()
    out.sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in layer.parameters())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("ffn_norm", [False, True])
@pytest.mark.parametrize("kind", ["gelu", "swiglu", "geglu"])
def test_feed_forward(kind: str, ffn_norm: bool, norm: str, bias: bool) -> None:
    """gelu(x W1) W2 (Eq. 9, the exact gelu), or (silu(x W1) . x W3) W2, or gelu for silu; with a
    norm before W2 or without."""
    config = make_config(feed_forward=kind, ffn_norm=ffn_norm, norm=norm, bias=bias, norm_eps=1e-3)
    layer = randomised(FeedForward(config))
    x = drawn(2, 5, 12)
    up = layer.up_proj(x)
    gate = up if layer.gate_proj is None else layer.gate_proj(x)
    sigmoid = gate.sigmoid() if kind == "swiglu" else 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    hidden = gate * sigmoid * (1 if kind == "gelu" else up)
    if ffn_norm:
        weight = layer.inner_norm.weight
        if norm == "layernorm":
            bias_term = layer.inner_norm.bias
            hidden = F.layer_norm(hidden, hidden.shape[-1:], weight, bias_term, eps=1e-3)
        else:
            hidden = F.rms_norm(hidden, hidden.shape[-1:], weight, eps=1e-3)
    torch.testing.assert_close(layer(x), layer.down_proj(hidden), rtol=1e-12, atol=1e-13)
    assert (layer.gate_proj is None) == (kind == "gelu")
    assert (layer.up_proj.bias is not None) == bias


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_block_is_equation_9(norm: str) -> None:
    """Y = MSR(LN(X)) + X, then FFN(LN(Y)) + Y."""
    config = make_config(norm=norm, norm_eps=1e-3)
    block = randomised(RetNetBlock(config))
    context = context_of(config, 6, retention_parallel)
    x = drawn(2, 6, 12)

    def normed(layer: Any, y: Tensor) -> Tensor:
        if norm == "layernorm":
            return F.layer_norm(y, (12,), layer.weight, layer.bias, eps=1e-3)
        return F.rms_norm(y, (12,), layer.weight, eps=1e-3)

    mixed, expected_state = block.mixer(normed(block.mixer_norm, x), context)
    y = x + mixed
    expected = y + block.feed_forward(normed(block.feed_forward_norm, y))
    actual, state = block(x, context)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(state, expected_state)


def test_dropout_is_on_each_half_and_off_in_evaluation() -> None:
    config = make_config(dropout=0.5)
    block = randomised(RetNetBlock(config))
    context = context_of(config, 40, retention_parallel)
    x = drawn(2, 40, 12)
    without = randomised(RetNetBlock(make_config()))
    expected, expected_state = without(x, context)
    assert torch.equal(block.eval()(x, context)[0], expected)

    torch.manual_seed(0)
    first, state = block.train()(x, context)
    assert not torch.equal(first, block(x, context)[0])
    assert torch.equal(state, expected_state)  # The state is before the dropout.
    untouched = (first == x).double().mean().item()  # Dropped in both halves: a quarter.
    assert 0.2 < untouched < 0.3
