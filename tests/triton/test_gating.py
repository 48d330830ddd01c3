"""Norm and gate in one pass: what it computes, its gradients, and that the layer uses it alike."""

import pytest
import torch

from retnet.config import ModelConfig
from retnet.model import RetNet
from retnet.ops import backends
from retnet.ops.triton.gating import norm_and_gate
from tests.triton.cases import error, finished


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 24), (1, 1, 1, 3), (3, 700, 2, 16), (0, 4, 1, 8)])
def test_norm_and_gate(kind: str, shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    x, gate, grad = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))
    exact = [x.requires_grad_(), gate.requires_grad_()]
    ours = [each.detach().float().requires_grad_() for each in exact]
    expected, found = finished(*exact, kind), norm_and_gate(*ours, kind, 1e-5)
    assert found.shape == expected.shape
    assert error(found.detach(), expected.detach()) <= 1e-6
    true = torch.autograd.grad(expected, exact, grad)
    for one, other in zip(torch.autograd.grad(found, ours, grad.float()), true, strict=True):
        assert error(one, other) <= 1e-6


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_the_layer_takes_it_where_kernels_are_verified(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients of a model are the same, to rounding, by either way."""
    config = ModelConfig(vocab_size=16, d_model=32, num_layers=1, num_heads=2, head_norm=kind)
    model = RetNet(config, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(16, (2, 40), generator=torch.Generator().manual_seed(1))

    def outcome() -> list[torch.Tensor]:
        model.zero_grad()
        features, _ = model.features(tokens)
        features.square().mean().backward()
        return [features.detach(), *(weight.grad for weight in model.parameters())]

    plain = outcome()
    used = []
    monkeypatch.setattr(backends, "_is_verified", lambda *_: used.append(1) or True)
    fused = outcome()
    assert used
    for one, other in zip(fused, plain, strict=True):
        assert (one is None) == (other is None)
        assert one is None or error(one, other.double()) <= 1e-3  # through a norm they cancel


def test_the_operator_is_as_torch_wants_it() -> None:
    x, gate = (torch.randn(3, 5, 8, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.retnet.triton_gating, (x, gate, True, 1e-5))
