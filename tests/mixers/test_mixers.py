"""Every token mixer: against its own step form, at any cut, in batches, and looking back only."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.config import MixerKind, ModelConfig
from retnet.generation import generate, prefill, step
from retnet.model import RetNet, RetNetState
from retnet.sampling import SamplingParams

KINDS: list[MixerKind] = ["retention", "attention", "linear", "rwkv", "h3", "hyena"]
RIVALS = KINDS[1:]
GROWING = {"attention", "hyena"}
VOCAB = 50

each_kind = pytest.mark.parametrize("kind", KINDS)


def make_model(kind: MixerKind, **changes: Any) -> RetNet:
    base: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 32, "num_layers": 2, "num_heads": 2}
    config = ModelConfig(**{**base, "mixer": kind, **changes})
    return RetNet(config, generator=torch.Generator().manual_seed(0)).double().eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert (actual - expected).norm() <= tolerance * expected.norm()


@each_kind
@pytest.mark.parametrize("cut", [1, 5, 16, 36])
@torch.no_grad()
def test_cut_anywhere(kind: MixerKind, cut: int) -> None:
    """A sequence in two calls, then token by token, equals one call."""
    model, tokens = make_model(kind), drawn(2, 45)
    expected, expected_state = model(tokens)
    logits, state = model(tokens[:, :cut])
    assert_near(logits, expected[:, :cut])
    rest, state = model(tokens[:, cut:40], state)
    assert_near(rest, expected[:, cut:40])
    for place in range(40, 45):
        scores, state = step(model, tokens[:, place], state)
        assert_near(scores, expected[:, place])
    for layer, expected_layer in zip(state.layers, expected_state.layers, strict=True):
        assert_near(layer, expected_layer)
    assert state.position.tolist() == [45, 45]


@each_kind
def test_looks_back_only(kind: MixerKind) -> None:
    """A later token changes no earlier output, exactly where no Fourier transform is used."""
    model, tokens = make_model(kind), drawn(1, 30)
    changed = tokens.clone()
    changed[0, 20] = (changed[0, 20] + 1) % VOCAB
    before, after = model(tokens)[0], model(changed)[0]
    assert_near(after[:, :20], before[:, :20], 1e-12)
    assert (after[:, 20:] - before[:, 20:]).abs().amax(-1).min() > 1e-6


@each_kind
@torch.no_grad()
def test_left_padding_changes_nothing(kind: MixerKind) -> None:
    model, tokens = make_model(kind), drawn(1, 20)
    expected, alone = model(tokens)
    padded = torch.cat([drawn(1, 23, seed=1), tokens], dim=1)
    mask = torch.arange(43)[None] >= 23
    logits, state = model(padded, mask=mask)
    assert_near(logits[:, 23:], expected)
    assert state.position.tolist() == [20]
    assert_near(step(model, tokens[:, 0], state)[0], step(model, tokens[:, 0], alone)[0])


@each_kind
@torch.no_grad()
def test_rows_do_not_touch(kind: MixerKind) -> None:
    model, tokens = make_model(kind), drawn(3, 25)
    together, state = model(tokens)
    alone, _ = model(tokens[1:2])
    assert_near(together[1:2], alone, 1e-12)
    chosen = step(model, tokens[[2, 1], 3], state.rows([2, 1]))[0]
    assert_near(chosen, step(model, tokens[:, 3], state)[0][[2, 1]], 1e-12)
    stacked = RetNetState.stack([state.rows([0]), state.rows([1, 2])])
    assert all(torch.equal(a, b) for a, b in zip(stacked.layers, state.layers, strict=True))


@each_kind
@torch.no_grad()
def test_a_cleared_row_has_read_nothing(kind: MixerKind) -> None:
    model, tokens = make_model(kind), drawn(2, 25)
    state = model(tokens)[1].cleared(torch.tensor([True, False]))
    logits, _ = model(tokens, state)
    assert_near(logits[0], model(tokens)[0][0])


@each_kind
def test_gradients_reach_every_parameter(kind: MixerKind) -> None:
    model = make_model(kind, tie_embeddings=False).train()
    model(drawn(2, 40))[0].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@each_kind
def test_gradients_do_not_depend_on_cuts(kind: MixerKind) -> None:
    """Through the state, too."""
    model, tokens = make_model(kind), drawn(1, 40)
    whole = torch.autograd.grad(model(tokens)[0].square().sum(), list(model.parameters()))
    first, state = model(tokens[:, :23])
    rest, _ = model(tokens[:, 23:], state)
    loss = first.square().sum() + rest.square().sum()
    for cut, expected in zip(
        torch.autograd.grad(loss, list(model.parameters())), whole, strict=True
    ):
        assert_near(cut, expected, 1e-9)


@each_kind
def test_parameters_of_a_layer(kind: MixerKind) -> None:
    """12 D^2 within 2 %, at a size that is trained."""
    width = 256
    config = ModelConfig(mixer=kind, vocab_size=259, d_model=width, num_layers=1, num_heads=4)
    with torch.device("meta"):
        block = RetNet(config).backbone.layers[0]
    count = sum(parameter.numel() for parameter in block.parameters())
    assert abs(count / (12 * width**2) - 1) < 0.04


@each_kind
@torch.no_grad()
def test_the_state_grows_where_it_must(kind: MixerKind) -> None:
    model = make_model(kind)
    few, many = (prefill(model, drawn(1, length))[1].num_bytes for length in (10, 100))
    assert many == (10 * few if kind in GROWING else few)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_kind
def test_generates(kind: MixerKind, dtype: torch.dtype) -> None:
    model, params = make_model(kind).to(dtype), SamplingParams(temperature=0, max_tokens=5)
    tokens = [int(token[0]) for token in generate(model, drawn(1, 12), params)]
    assert len(tokens) == 5 and all(0 <= token < VOCAB for token in tokens)


@each_kind
@torch.no_grad()
def test_documents_packed_in_a_row(kind: MixerKind) -> None:
    """Each as if it were alone; the state before is the first's, the state after the last's."""
    model, tokens, before = make_model(kind), drawn(2, 30), drawn(2, 7, seed=1)
    places = torch.arange(30)
    segments = torch.stack([(places >= 12).long() + (places >= 13), (places >= 20).long()])
    _, state = model(before)
    logits, after = model(tokens, state, segment_ids=segments)
    for row, cuts in enumerate(([0, 12, 13, 30], [0, 20, 30])):
        alone = state.rows([row])
        for start, end in pairwise(cuts):
            first = alone if start == 0 else None
            expected, alone = model(tokens[row : row + 1, start:end], first)
            assert_near(logits[row, start:end], expected[0])
        following = step(model, tokens[row : row + 1, 0], after.rows([row]))[0]
        assert_near(following, step(model, tokens[row : row + 1, 0], alone)[0])
