"""Checkpoints in fla's layout, made from what is known of it, beside a computation by hand."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.checkpoint import CheckpointError, fla, from_fla, to_fla
from retnet.checkpoint.weights import expected_shapes
from retnet.config import ModelConfig
from retnet.model import RetNet
from retnet.ops import retention_chunkwise, retention_parallel, retention_recurrent

D, H, K, V, F, VOCAB = 12, 2, 4, 9, 10, 11
FIELDS: dict[str, Any] = {
    "model_type": "retnet",
    "attn_mode": "fused_chunk",
    "hidden_size": D,
    "expand_k": H * K / D,
    "expand_v": H * V / D,
    "hidden_ratio": 2,
    "intermediate_size": F,
    "num_hidden_layers": 2,
    "num_heads": H,
    "num_kv_heads": None,
    "feature_map": None,
    "hidden_act": "swish",
    "use_short_conv": False,
    "conv_size": 4,
    "use_output_gate": True,
    "elementwise_affine": True,
    "fuse_norm": True,
    "norm_eps": 1e-3,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}
TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
LAYERS = ("model.layers.0.", "model.layers.1.")


def drawn_weights() -> dict[str, Tensor]:
    layer = {
        "attn_norm": (D,),
        "attn.q_proj": (H * K, D),
        "attn.k_proj": (H * K, D),
        "attn.v_proj": (H * V, D),
        "attn.g_proj": (H * V, D),
        "attn.o_proj": (D, H * V),
        "attn.g_norm_swish_gate": (V,),
        "mlp_norm": (D,),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    shapes = {f"{prefix}{name}": shape for prefix in LAYERS for name, shape in layer.items()}
    shapes |= {"model.embeddings": (VOCAB, D), "model.norm": (D,), "lm_head": (VOCAB, D)}
    rng = torch.Generator().manual_seed(0)
    return {
        f"{name}.weight": torch.randn(shape, generator=rng, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def logits_by_hand(w: Mapping[str, Tensor], *, affine: bool = True) -> Tensor:
    """One row, loops over tokens, heads and pairs; nothing of this package."""

    def norm(x: Tensor, weight: Tensor | float) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight

    def rotated(x: Tensor, n: int) -> Tensor:
        """NeoX: entry i turns with entry i + K/2 by n 10000^(-2i/K)."""
        y = x.clone()
        for i in range(K // 2):
            angle = torch.tensor(n * 10_000.0 ** (-2 * i / K), dtype=torch.float64)
            first, second = x[i], x[i + K // 2]
            y[i] = first * angle.cos() - second * angle.sin()
            y[i + K // 2] = second * angle.cos() + first * angle.sin()
        return y

    x = w["model.embeddings.weight"][TOKENS]
    for layer in LAYERS:
        y = norm(x, w[f"{layer}attn_norm.weight"])
        q, k, v, g = (y @ w[f"{layer}attn.{name}_proj.weight"].T for name in "qkvg")
        heads = torch.zeros(len(TOKENS), H * V, dtype=torch.float64)
        for h in range(H):
            gamma = 1 - 2.0 ** (-5 - h)
            key_rows, value_rows = slice(h * K, h * K + K), slice(h * V, h * V + V)
            for n in range(len(TOKENS)):
                query = rotated(q[n, key_rows], n) * K**-0.5
                out = sum(
                    gamma ** (n - m) * (query @ rotated(k[m, key_rows], m)) * v[m, value_rows]
                    for m in range(n + 1)
                )
                weight = w[f"{layer}attn.g_norm_swish_gate.weight"] if affine else 1.0
                heads[n, value_rows] = norm(out, weight)
        x = x + (heads * g * g.sigmoid()) @ w[f"{layer}attn.o_proj.weight"].T
        y = norm(x, w[f"{layer}mlp_norm.weight"])
        gate, up = (y @ w[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ w[f"{layer}mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


@torch.no_grad()
def assert_computes(model: RetNet, expected: Tensor) -> None:
    for form in (retention_parallel, retention_recurrent, retention_chunkwise):
        logits, _ = model(TOKENS[None], retain=form)
        assert (logits[0] - expected).abs().max() < 1e-10


def as_in_2024(weights: Mapping[str, Tensor], *, fused: bool) -> dict[str, Tensor]:
    """Older names, and the two matrices of the feed forward in one, the gate's first."""
    old = {}
    for name, tensor in weights.items():
        if fused and name.endswith("mlp.up_proj.weight"):
            continue
        if fused and name.endswith("mlp.gate_proj.weight"):
            up = weights[name.replace("gate_proj", "up_proj")]
            tensor = torch.cat([tensor, up])
        for today, then in (
            ("model.embeddings", "model.embed_tokens"),
            ("attn_norm", "retnet_norm"),
            ("g_norm_swish_gate", "g_norm"),
        ):
            name = name.replace(today, then)
        old[name] = tensor
    return old


def test_logits() -> None:
    weights = drawn_weights()
    model = from_fla(weights, FIELDS)
    assert_computes(model, logits_by_hand(weights))
    assert (model.config.key_size, model.config.value_size) == (K, V)


@pytest.mark.parametrize("fused", [False, True])
def test_names_of_2024(fused: bool) -> None:
    weights = drawn_weights()
    fields = {**FIELDS, "norm_eps": None, "rms_norm_eps": 1e-3, "share_conv_kernel": True}
    assert_computes(from_fla(as_in_2024(weights, fused=fused), fields), logits_by_hand(weights))


def test_head_norm_without_weight() -> None:
    weights = {name: x for name, x in drawn_weights().items() if "g_norm" not in name}
    model = from_fla(weights, FIELDS | {"elementwise_affine": False})
    assert_computes(model, logits_by_hand(weights, affine=False))


@pytest.mark.parametrize("stored", [False, True])
def test_tied_head(stored: bool) -> None:
    weights = drawn_weights()
    weights["lm_head.weight"] = weights["model.embeddings.weight"].clone()
    expected = logits_by_hand(weights)
    if not stored:
        del weights["lm_head.weight"]
    model = from_fla(weights, FIELDS | {"tie_word_embeddings": True})
    assert model.lm_head is None
    assert_computes(model, expected)


def test_convolutions_that_fla_ignores() -> None:
    weights = drawn_weights()
    model = from_fla(weights, FIELDS | {"use_short_conv": True})
    assert_computes(model, logits_by_hand(weights))


def test_size_of_the_feed_forward() -> None:
    """Where it isn't given: 2/3 of the ratio, up to a multiple of 256."""
    weights = drawn_weights()
    for layer in LAYERS:
        for name in ("gate_proj", "up_proj"):
            weights[f"{layer}mlp.{name}.weight"] = torch.zeros(256, D)
        weights[f"{layer}mlp.down_proj.weight"] = torch.zeros(D, 256)
    assert from_fla(weights, FIELDS | {"intermediate_size": None}).config.ffn_size == 256


def test_size_of_the_published_models() -> None:
    """fla-hub/retnet-1.3B-100B: 267 tensors, 1,351,727,104 parameters."""
    fields = FIELDS | {
        "hidden_size": 2048,
        "expand_k": 1,
        "expand_v": 2,
        "num_hidden_layers": 24,
        "num_heads": 8,
        "intermediate_size": None,
        "vocab_size": 32_000,
    }
    embedding = torch.empty(32_000, 2048, device="meta")
    shapes = expected_shapes(fla._config({"model.embeddings.weight": embedding}, fields))
    assert len(shapes) == 267
    assert sum(math.prod(shape) for shape in shapes.values()) == 1_351_727_104


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_round_trip(fused: bool, dtype: torch.dtype) -> None:
    """Out again bit by bit, by the names of today."""
    weights = {name: tensor.to(dtype) for name, tensor in drawn_weights().items()}
    read = as_in_2024(weights, fused=True) if fused else weights
    written, fields = to_fla(from_fla(read, FIELDS))
    assert written.keys() == weights.keys()
    for name, tensor in weights.items():
        assert written[name].dtype == dtype
        assert torch.equal(written[name], tensor), name
    changed = {name for name, value in fields.items() if FIELDS.get(name) != value}
    assert changed == {"attn_mode", "hidden_ratio"}


@pytest.mark.parametrize("pairing", ["interleaved", "halves"])
def test_a_model_of_ours_in_fla(pairing: str) -> None:
    """Interleaved pairs become halves: rows of queries and keys move, the function stays."""
    config = ModelConfig(
        vocab_size=VOCAB,
        d_model=D,
        num_layers=2,
        num_heads=H,
        key_size=K,
        value_size=V,
        ffn_size=F,
        decay="equation8",
        score_norm="none",
        head_norm="rmsnorm",
        head_norm_eps=1e-3,
        head_norm_affine=True,
        norm="rmsnorm",
        norm_eps=1e-3,
        feed_forward="swiglu",
        rotary_frequencies="rope",
        rotary_pairing=pairing,
        tie_embeddings=False,
    )
    model = RetNet(config, generator=torch.Generator().manual_seed(0)).double().eval()
    weights, fields = to_fla(model)
    assert_computes(model, logits_by_hand(weights))
    assert_computes(from_fla(weights, fields), logits_by_hand(weights))


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


def with_tensor(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: tensor})


GATE = "model.layers.1.mlp.gate_proj.weight"
BAD: dict[str, tuple[dict[str, Any], Callable[[dict[str, Tensor]], object] | None, str]] = {
    "a hybrid": ({"attn": {"layers": [1]}}, None, "attn={'layers': .* can't be converted exactly"),
    "feature map": ({"feature_map": "relu"}, None, "feature_map='relu' can't be converted"),
    "no gate": ({"use_output_gate": False}, None, "use_output_gate=False can't be converted"),
    "fewer heads of keys": ({"num_kv_heads": 1}, None, "num_kv_heads=1 can't be .*num_kv_heads=2"),
    "another activation": ({"hidden_act": "relu"}, None, "hidden_act='relu' can't be converted"),
    "no width": ({"hidden_size": None}, None, "'hidden_size' must be a positive integer, got None"),
    "another vocabulary": ({"vocab_size": 12}, None, "'vocab_size' is 12 and the embedding has 11"),
    "tied, it says": (
        {"tie_word_embeddings": True},
        None,
        "lm_head.weight is not model.embeddings",
    ),
    "convolutions": (
        {"use_short_conv": True},
        with_tensor("model.layers.0.attn.q_conv1d.weight", torch.ones(8, 1, 4)),
        "q_conv1d.weight is of a short convolution",
    ),
    "another mixer": (
        {},
        with_tensor("model.layers.0.attn.gk_proj.0.weight", torch.ones(8, 1)),
        r"disagree \(1\): model.layers.0.attn.gk_proj.0.weight is not of this model",
    ),
    "no embedding": ({}, without("model.embeddings.weight"), "embeddings.weight is missing"),
    "no head": ({}, without("lm_head.weight"), r"\(1\): lm_head.weight is missing"),
    "no gate's matrix": ({}, without(GATE), f"{GATE} is missing"),
    "another shape": ({}, with_tensor(GATE, torch.ones(F, 3)), rf"{GATE} is \[10, 3\], expected"),
    "infinite": ({}, with_tensor(GATE, torch.full((F, D), torch.inf)), f"{GATE} holds NaN or inf"),
    "an odd fused matrix": (
        {},
        lambda weights: (
            weights.update({GATE: torch.ones(1, D)}) or weights.pop(GATE.replace("gate", "up"))
        ),
        "up_proj.weight is missing",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_refused(bad: str) -> None:
    changes, change, message = BAD[bad]
    weights = drawn_weights()
    if change is not None:
        change(weights)
    with pytest.raises(ValueError, match=message):
        from_fla(weights, FIELDS | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_frequencies": "torchscale"}, "fla can't express rotary_frequencies='torchscale'"),
        ({"score_norm": "decay"}, "score_norm='decay', only 'none'"),
        ({"decay": "linspace"}, "decay='linspace', only 'equation8'"),
        ({"feed_forward": "geglu"}, "feed_forward='geglu', only 'swiglu'"),
        ({"embedding_norm": True}, "embedding_norm=True, only False"),
        ({"norm_eps": 1e-6}, "head_norm_eps unlike norm_eps"),
        (
            {"score_norm": "decay", "bias": True, "norm_eps": 1e-6},
            "score_norm='decay', only 'none'; nor bias=True, only False; nor head_norm_eps unlike",
        ),
    ],
)
def test_what_fla_can_not_express(changes: dict[str, Any], message: str) -> None:
    model = from_fla(drawn_weights(), FIELDS)
    config = ModelConfig.from_dict(model.config.to_dict() | changes)
    with pytest.raises(CheckpointError, match=message):
        to_fla(RetNet(config))
