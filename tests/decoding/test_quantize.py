"""Weights in a byte each, and that the model has the same ones."""

import torch

from retnet.decoding.quantize import quantize_, rounded
from retnet.decoding.weights import Matrix, merge_
from retnet.model import RetNet
from tests.decoding.test_decoder import make_model


def matrices(model: RetNet) -> list[Matrix]:
    weights = quantize_(merge_(model))
    found = [weights.head]
    for layer in weights.layers:
        found += [layer.projection, layer.output, layer.up, layer.down]
    return found


def test_every_weight_is_within_half_a_step(rng: torch.Generator) -> None:
    """A row of large numbers takes nothing from a row of small ones; zeros stay zeros."""
    weight = torch.randn(5, 300, generator=rng) * torch.tensor([1e-6, 1.0, 1e4, 0.0, 3.0])[:, None]
    found = rounded(weight)
    error = (found.values * found.scales[:, None] - weight).abs()
    assert (error <= 0.5001 * found.scales[:, None]).all()
    assert found.values.abs().amax(dim=1).tolist() == [127, 127, 127, 0, 127]
    assert found.scales.isfinite().all()


def test_the_model_has_the_rounded_weights() -> None:
    """So prompts are read with what steps multiply by; norms and biases are as they were."""
    model = make_model(torch.bfloat16, bias=True, tie_embeddings=False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for matrix in matrices(model):
        assert matrix.integers is not None
        exact = matrix.integers.values * matrix.integers.scales[:, None]
        assert torch.equal(matrix.weight, exact.to(torch.bfloat16))
    changed = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "embed_tokens" not in name
    }
    projection = model.get_parameter("backbone.layers.0.mixer.v_proj.weight")
    was = before["backbone.layers.0.mixer.v_proj.weight"]
    assert (projection - was).float().norm() / was.float().norm() < 0.01


def test_a_tied_head_takes_the_embedding_with_it() -> None:
    model = make_model()
    [head, *_] = matrices(model)
    assert head.weight.data_ptr() == model.backbone.embed_tokens.weight.data_ptr()
    assert model.head_weight is model.backbone.embed_tokens.weight
