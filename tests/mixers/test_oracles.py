"""Each mixer against another way to compute it: explicit sums, or another project's code."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.config import MixerKind, ModelConfig
from retnet.mixers import H3, Hyena, LinearAttention, RwkvTimeMixing, SoftmaxAttention, make_mixer
from retnet.mixers.convolution import causal_convolution
from retnet.model import initialise_
from retnet.ops import retention_chunkwise
from retnet.position import TokenContext, make_context, rotary_angles

WIDTH, HEADS, LENGTH = 32, 2, 37


def make(kind: MixerKind, **changes: Any) -> Any:
    """A mixer whose parameters are all drawn, fp64."""
    config = ModelConfig(mixer=kind, d_model=WIDTH, num_heads=HEADS, **changes)
    mixer = make_mixer(config, 1)
    generator = torch.Generator().manual_seed(0)
    initialise_(torch.nn.ModuleDict({"mixer": mixer}), generator)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return mixer.double().eval()


def context(length: int = LENGTH) -> TokenContext:
    config = ModelConfig(mixer="attention", d_model=WIDTH, num_heads=HEADS)
    return make_context(
        config,
        torch.arange(length)[None],
        mask=None,
        segment_ids=None,
        retain=partial(retention_chunkwise, chunk_size=8),
        dtype=torch.float64,
    )


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(
        2, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def by_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


@torch.no_grad()
def test_attention_is_a_softmax_of_turned_products() -> None:
    """With pairs as complex numbers, and e^(i (n - m) theta) for each pair of tokens."""
    mixer, x = make("attention"), inputs()
    assert isinstance(mixer, SoftmaxAttention)
    q, k = (
        torch.view_as_complex(by_heads(y).unflatten(-1, (-1, 2)).contiguous())
        for y in (mixer.q_proj(x), mixer.k_proj(x))
    )
    angles = rotary_angles(torch.arange(LENGTH), WIDTH // HEADS, "torchscale")
    turns = torch.polar(torch.ones_like(angles), angles)
    lags = turns[:, None] * turns[None].conj()
    scores = torch.einsum("bhnp,bhmp,nmp->bhnm", q, k.conj(), lags).real / (WIDTH / HEADS) ** 0.5
    hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    expected = mixer.out_proj((weights @ by_heads(mixer.v_proj(x))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, context())[0], expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_linear_attention_is_its_sum() -> None:
    mixer, x = make("linear"), inputs()
    assert isinstance(mixer, LinearAttention)
    angles = rotary_angles(torch.arange(LENGTH), WIDTH // HEADS, "torchscale")
    waves = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
    placed = x + torch.cat([waves] * HEADS, dim=1)
    q, k = (F.elu(by_heads(project(placed))) + 1 for project in (mixer.q_proj, mixer.k_proj))
    weights = (q @ k.transpose(-1, -2)).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    expected = mixer.out_proj((weights @ by_heads(mixer.v_proj(x))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, context())[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 40.0], ids=["as drawn", "large keys"])
@torch.no_grad()
def test_rwkv_is_that_of_transformers(scale: float) -> None:
    """Its attention module with the same weights, also where e^k is no fp32 number."""
    rwkv = pytest.importorskip("transformers.models.rwkv.modeling_rwkv")
    transformers = pytest.importorskip("transformers")
    mixer, x = make("rwkv").float(), inputs().float()
    assert isinstance(mixer, RwkvTimeMixing)
    mixer.k_proj.weight.mul_(scale)
    settings = transformers.RwkvConfig(hidden_size=WIDTH, num_hidden_layers=1, vocab_size=10)
    theirs = rwkv.RwkvSelfAttention(settings)
    pairs = {
        "time_decay": mixer.time_decay,
        "time_first": mixer.time_first,
        "time_mix_key": mixer.time_mix_k[None, None],
        "time_mix_value": mixer.time_mix_v[None, None],
        "time_mix_receptance": mixer.time_mix_r[None, None],
        "key.weight": mixer.k_proj.weight,
        "value.weight": mixer.v_proj.weight,
        "receptance.weight": mixer.r_proj.weight,
        "output.weight": mixer.out_proj.weight,
    }
    theirs.load_state_dict(pairs)
    torch.testing.assert_close(mixer(x, context())[0], theirs(x)[0], rtol=1e-4, atol=1e-5)


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """sum_s kernel[s] x[t - s] over all pairs; x [..., T], kernel [..., S]."""
    length, reach = x.shape[-1], kernel.shape[-1]
    total = torch.zeros_like(x)
    for t in range(length):
        for s in range(min(t + 1, reach)):
            total[..., t] += kernel[..., s] * x[..., t - s]
    return total


@torch.no_grad()
def test_h3_is_two_direct_convolutions() -> None:
    """The kernel of the diagonal model from powers of its matrix, one by one."""
    mixer, x = make("h3"), inputs()
    assert isinstance(mixer, H3)
    q, k, v = (project(x) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    k = k.transpose(1, 2)
    k = convolved(k, mixer.shift) + mixer.shift_skip[:, None] * k
    heads = (WIDTH // 8, 8)
    q, k, v = q.unflatten(-1, heads), k.transpose(1, 2).unflatten(-1, heads), v.unflatten(-1, heads)
    outer = (k[..., :, None] * v[..., None, :]).permute(0, 2, 3, 4, 1)
    rate = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    step = mixer.log_step.exp()[:, None]
    turn, power = torch.exp(rate * step), torch.ones_like(rate)
    read = torch.view_as_complex(mixer.read_out) * (turn - 1) / rate
    taps = []
    for _ in range(LENGTH):
        taps.append(2 * (read * power).sum(-1).real)
        power = power * turn
    mixed = convolved(outer, torch.stack(taps, dim=-1)[:, None, None])
    mixed = mixed + mixer.skip[:, None, None, None] * outer
    y = (q.permute(0, 2, 3, 1)[:, :, :, None] * mixed).sum(2).permute(0, 3, 1, 2).flatten(2)
    expected = mixer.out_proj(y)
    torch.testing.assert_close(mixer(x, context())[0], expected, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_hyena_is_its_direct_convolutions() -> None:
    mixer, x = make("hyena"), inputs()
    assert isinstance(mixer, Hyena)
    raw = mixer.in_proj(x).transpose(1, 2)
    first, second, v = convolved(raw, mixer.short).chunk(3, dim=1)
    kernel = mixer.filter(LENGTH, torch.float64).T
    long = convolved(second * v, kernel) + mixer.skip[:, None] * second * v
    expected = mixer.out_proj((first * long).transpose(1, 2))
    torch.testing.assert_close(mixer(x, context())[0], expected, rtol=1e-9, atol=1e-11)


def test_hyenas_filter_is_the_same_at_any_length() -> None:
    mixer = make("hyena")
    assert torch.equal(mixer.filter(50, torch.float64)[:20], mixer.filter(20, torch.float64))


@pytest.mark.parametrize("length", [1, 2, 37, 64])
def test_causal_convolution(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, length, dtype=torch.float64, generator=generator)
    kernel = torch.randn(4, length, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(causal_convolution(x, kernel), convolved(x, kernel))


def test_h3_at_a_width_without_heads() -> None:
    with pytest.raises(ValueError, match="d_model must be a multiple of 8 for h3, got 20"):
        make_mixer(ModelConfig(mixer="h3", d_model=20, num_heads=2), 0)
