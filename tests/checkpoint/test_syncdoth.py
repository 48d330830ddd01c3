"""Checkpoints in syncdoth's layout: torchscale's, by other names and with a decay of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.checkpoint import CheckpointError, from_syncdoth, from_torchscale
from retnet.position import log_decays

FIELDS: dict[str, Any] = {
    "model_type": "retnet",
    "vocab_size": 11,
    "decoder_embed_dim": 8,
    "decoder_value_embed_dim": 12,
    "decoder_retention_heads": 2,
    "decoder_ffn_embed_dim": 10,
    "decoder_layers": 1,
    "decoder_normalize_before": True,
    "activation_fn": "swish",
    "layernorm_embedding": True,
    "no_scale_embedding": False,
    "layernorm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_glu": True,
    "use_lm_decay": False,
    "use_ffn_rms_norm": False,
    "forward_impl": "parallel",
    "subln": True,
    "deepnorm": False,
}
SHAPES = {
    "model.embed_tokens": (11, 8),
    "model.layernorm_embedding": (8,),
    "model.layers.0.retention.q_proj": (8, 8),
    "model.layers.0.retention.k_proj": (8, 8),
    "model.layers.0.retention.v_proj": (12, 8),
    "model.layers.0.retention.g_proj": (12, 8),
    "model.layers.0.retention.out_proj": (8, 12),
    "model.layers.0.retention_layer_norm": (8,),
    "model.layers.0.final_layer_norm": (8,),
    "model.layers.0.ffn.fc1": (10, 8),
    "model.layers.0.ffn.gate": (10, 8),
    "model.layers.0.ffn.fc2": (8, 10),
    "model.layer_norm": (8,),
    "lm_head": (11, 8),
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def drawn_weights(decay: str | None = "equation8") -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    weights = {
        f"{name}.weight": torch.randn(shape, generator=rng, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }
    if decay is not None:
        weights["model.retnet_rel_pos.decay"] = log_decays(decay, 2).float()
        weights["model.retnet_rel_pos.angle"] = torch.tensor([1, 1, 1e-4, 1e-4])
    return weights


def by_hand(w: dict[str, Tensor], gammas: list[float]) -> Tensor:
    """The recurrent form, one layer, one row; nothing of this package."""

    def norm(x: Tensor, weight: Tensor | float) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def of_layer(name: str) -> Tensor:
        return w[f"model.layers.0.{name}.weight"]

    x = w["model.embed_tokens.weight"][TOKENS[0]] * 8**0.5
    x = norm(x, w["model.layernorm_embedding.weight"])
    y = norm(x, of_layer("retention_layer_norm"))
    q, k, v, g = (y @ of_layer(f"retention.{name}_proj").T for name in "qkvg")
    theta = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    turn = torch.polar(torch.ones(()).double(), torch.arange(len(x))[:, None] * theta)
    heads = torch.zeros(len(x), 12, dtype=torch.float64)
    for h, gamma in enumerate(gammas):
        rows, values = slice(4 * h, 4 * h + 4), slice(6 * h, 6 * h + 6)
        qc = torch.view_as_complex(q[:, rows].unflatten(-1, (2, 2)).contiguous()) * turn
        kc = torch.view_as_complex(k[:, rows].unflatten(-1, (2, 2)).contiguous()) * turn / 2
        state, mass = torch.zeros(2, 6, dtype=torch.complex128), 0.0
        for n in range(len(x)):
            state = gamma * state + torch.outer(kc[n].conj(), v[n, values].to(kc.dtype))
            mass = gamma * mass + 1
            heads[n, values] = norm((qc[n] @ state).real / mass**0.5, 1.0)
    x = x + (g * g.sigmoid() * heads) @ of_layer("retention.out_proj").T
    y = norm(x, of_layer("final_layer_norm"))
    fc1 = y @ of_layer("ffn.fc1").T
    x = x + (fc1 * fc1.sigmoid() * (y @ of_layer("ffn.gate").T)) @ of_layer("ffn.fc2").T
    return norm(x, w["model.layer_norm.weight"]) @ w["lm_head.weight"].T


GAMMAS = {
    "equation8": [1 - 2.0**-5, 1 - 2.0**-6],
    "linspace": [1 - 1 / 32, 1 - 1 / 512],
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("decay", GAMMAS)
@torch.no_grad()
def test_logits(decay: str, stored: bool) -> None:
    """With a scaled and normed embedding, whether the decays are among the weights or not."""
    weights = drawn_weights(decay if stored else None)
    model = from_syncdoth(weights, FIELDS | {"use_lm_decay": decay == "linspace"})
    assert model.config.decay == decay
    expected = by_hand(weights, GAMMAS[decay])
    assert (model(TOKENS)[0][0] - expected).abs().max() < 1e-11 * expected.abs().max()


def test_it_is_torchscales_by_other_names() -> None:
    weights = drawn_weights()
    names = {name: name.removeprefix("model.") for name in weights}
    names["lm_head.weight"] = "output_projection.weight"
    renamed = {names[name]: tensor for name, tensor in weights.items()}
    for score_norm in ("decay", "paper"):
        mine = from_syncdoth(weights, FIELDS, score_norm=score_norm)
        theirs = from_torchscale(renamed, FIELDS, score_norm=score_norm)
        assert mine.config == theirs.config
        assert torch.equal(mine(TOKENS)[0], theirs(TOKENS)[0])


def test_tied_and_scaled() -> None:
    """The embedding is scaled and the head is not, so they come apart."""
    weights = drawn_weights()
    del weights["lm_head.weight"]
    model = from_syncdoth(weights, FIELDS | {"tie_word_embeddings": True})
    assert not model.config.tie_embeddings
    embedding = weights["model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, embedding)
    assert torch.equal(model.backbone.embed_tokens.weight, embedding * 8**0.5)


@pytest.mark.parametrize(
    ("changes", "missing", "message"),
    [
        ({"use_glu": False}, None, "syncdoth models with use_glu=False can't be converted"),
        ({"deepnorm": True}, None, "deepnorm=True can't be converted"),
        ({}, "lm_head.weight", "lm_head.weight is missing"),
        ({}, "model.layers.0.ffn.gate.weight", "layers.0.ffn.gate.weight is missing"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], missing: str | None, message: str) -> None:
    weights = drawn_weights()
    weights.pop(missing or "", None)
    with pytest.raises(CheckpointError, match=message):
        from_syncdoth(weights, FIELDS | changes)
