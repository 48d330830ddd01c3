"""The paper's ablations (section 3.6), as plain configuration."""

from typing import Any

import pytest
import torch

from retnet.config import ModelConfig
from retnet.decoding import Decoder
from retnet.generation import step
from retnet.model import RetNet

WIDTH, HEADS = 64, 4
ABLATIONS: dict[str, dict[str, Any]] = {
    "no gate": {"gate": False},
    "no head norm": {"head_norm": "none"},
    "no decay": {"decay": "none"},
    "one decay": {"decay": [127 / 128] * HEADS},
    "small heads": {"num_heads": 4 * HEADS},
}

each_ablation = pytest.mark.parametrize("changes", list(ABLATIONS.values()), ids=list(ABLATIONS))


def make_model(**changes: Any) -> RetNet:
    base: dict[str, Any] = {"d_model": WIDTH, "num_layers": 2, "num_heads": HEADS}
    config = ModelConfig(**{**base, **changes})
    return RetNet(config, generator=torch.Generator().manual_seed(0)).double().eval()


@each_ablation
@torch.no_grad()
def test_steps_equal_one_call(changes: dict[str, Any]) -> None:
    model = make_model(**changes)
    tokens = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(1))
    expected, _ = model(tokens)
    _, state = model(tokens[:, :12])
    for place in range(12, 20):
        logits, state = step(model, tokens[:, place], state)
        torch.testing.assert_close(logits, expected[:, place], rtol=1e-9, atol=1e-11)


@each_ablation
def test_parameters(changes: dict[str, Any]) -> None:
    """12 D^2 a layer, all of them: without a gate they go where a Transformer has them."""
    model = make_model(**changes)
    matrices = [p for p in model.backbone.layers.parameters() if p.dim() == 2]
    assert sum(matrix.numel() for matrix in matrices) == 2 * 12 * WIDTH**2
    assert model.config.layer_parameters == 12 * WIDTH**2


def test_sizes_without_a_gate() -> None:
    config = ModelConfig(d_model=WIDTH, num_heads=HEADS, gate=False)
    assert (config.value_size, config.ffn_size) == (WIDTH // HEADS, 4 * WIDTH)


@torch.no_grad()
def test_without_a_norm_outputs_scale_with_values() -> None:
    """What the norm takes away is there: twice the values are twice the output."""
    bare, normed = make_model(head_norm="none"), make_model(head_norm_eps=0.0)
    tokens = torch.arange(10)[None]
    for model, factor in ((bare, 2.0), (normed, 1.0)):
        mixer: Any = model.backbone.layers[0].mixer
        outputs = []
        mixer.out_proj.register_forward_hook(lambda _m, _x, y, to=outputs: to.append(y))
        model(tokens)
        mixer.v_proj.weight.mul_(2)
        model(tokens)
        torch.testing.assert_close(outputs[1], factor * outputs[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("changes", [{"gate": False}, {"head_norm": "none"}], ids=str)
def test_decoders_have_none_of_these(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a model with a gate and a head norm"):
        Decoder(make_model(**changes))


def test_decoders_have_retention_only() -> None:
    with pytest.raises(ValueError, match="a decoder needs a model whose mixer is retention"):
        Decoder(make_model(mixer="attention"))
