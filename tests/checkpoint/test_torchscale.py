"""torchscale's own decoder beside the model that is made of its weights."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.checkpoint import CheckpointError, from_torchscale, to_torchscale
from retnet.checkpoint.torchscale import exactness, version
from retnet.config import ModelConfig
from retnet.generation import generate
from retnet.model import RetNet
from retnet.ops import retention_chunkwise, retention_parallel, retention_recurrent
from retnet.position import log_decays, rotary_angles
from retnet.sampling import SamplingParams

VOCAB, LENGTH = 97, 40
ANGLE, DECAY = "retnet_rel_pos.angle", "retnet_rel_pos.decay"


@pytest.fixture
def decoder_classes(stand_in_for_timm: None) -> tuple[Any, Any]:
    """torchscale's configuration and decoder."""
    pytest.importorskip("fairscale")
    pytest.importorskip("torchscale")
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    return RetNetConfig, RetNetDecoder


@pytest.fixture
def in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchscale calls .float() in its norms and activations; let that leave fp64 alone."""
    to_fp32 = torch.Tensor.float
    monkeypatch.setattr(
        torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_fp32(x)
    )


def make_decoder(classes: tuple[Any, Any], *, scale: float = 1.0, **changes: Any) -> Any:
    """A random decoder of 4 layers, its norms' weights random too.

    scale: of queries and keys; the larger, the more row sums exceed the clamp.
    """
    config_class, decoder_class = classes
    sizes = {
        "vocab_size": VOCAB,
        "decoder_embed_dim": 64,
        "decoder_value_embed_dim": 96,
        "decoder_retention_heads": 4,
        "decoder_ffn_embed_dim": 80,
        "decoder_layers": 4,
    }
    torch.manual_seed(0)
    decoder = decoder_class(config_class(**sizes, **changes), torch.nn.Embedding(VOCAB, 64)).eval()
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            parameter.mul_(scale)
    return decoder


def doubled(decoder: Any) -> Any:
    """The decoder in fp64, with decays and angles that were not rounded to fp32 before."""
    decoder = decoder.double()
    decoder.retnet_rel_pos.decay.copy_(log_decays("equation8", 4))
    angles = rotary_angles(torch.ones(1), 16, "torchscale")[0]
    decoder.retnet_rel_pos.angle.copy_(angles.repeat_interleave(2))
    return decoder


def drawn_tokens() -> Tensor:
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def recurrent_logits(decoder: Any, tokens: Tensor) -> Tensor:
    state: dict[Any, Any] = {}
    ends = range(1, tokens.shape[1] + 1)
    return torch.cat([decoder(tokens[:, :end], state)[0] for end in ends], dim=1)


def largest_difference(model: RetNet, expected: Tensor) -> float:
    """Of the logits, over our three forms."""
    forms = (retention_parallel, retention_recurrent, retention_chunkwise)
    outs = [model(drawn_tokens(), retain=form)[0] for form in forms]
    return max((out - expected).abs().max().item() for out in outs)


EVERY_SETTING: list[dict[str, Any]] = [
    {},
    {"activation_fn": "swish", "share_decoder_input_output_embed": True},
    {"layernorm_embedding": True, "no_scale_embedding": False},
    {"no_scale_embedding": False, "share_decoder_input_output_embed": True},
]


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("settings", EVERY_SETTING, ids=str)
@pytest.mark.usefixtures("in_fp64")
@torch.no_grad()
def test_logits(
    decoder_classes: tuple[Any, Any], settings: dict[str, Any], scale: float, eps: float
) -> None:
    """Each form with the score norm that is its own, at its epsilon, the clamp active or not."""
    decoder = doubled(make_decoder(decoder_classes, scale=scale, layernorm_eps=eps, **settings))
    weights, fields = decoder.state_dict(), vars(decoder.args)
    by_step, at_once = recurrent_logits(decoder, drawn_tokens()), decoder(drawn_tokens())[0]
    is_clamped = not torch.allclose(by_step, at_once, rtol=0, atol=1e-8)
    assert is_clamped == (scale > 1)

    model = from_torchscale(weights, fields)
    assert largest_difference(model, by_step) < 1e-12
    if not is_clamped:
        assert largest_difference(model, at_once) < 1e-12
    model = from_torchscale(weights, fields, score_norm="paper")
    assert largest_difference(model, at_once) < 1e-12


@torch.no_grad()
def test_logits_as_torchscale_runs(decoder_classes: tuple[Any, Any]) -> None:
    """In fp32, nothing patched: the difference is rounding."""
    decoder = make_decoder(decoder_classes, scale=4.0)
    model = from_torchscale(decoder.state_dict(), vars(decoder.args))
    expected = recurrent_logits(decoder, drawn_tokens())
    assert largest_difference(model, expected) < 2e-5


@pytest.mark.usefixtures("in_fp64")
@torch.no_grad()
def test_greedy_continuation(decoder_classes: tuple[Any, Any]) -> None:
    decoder = doubled(make_decoder(decoder_classes, scale=4.0))
    model = from_torchscale(decoder.state_dict(), vars(decoder.args))
    prompt = drawn_tokens()[:1, :5]
    state: dict[Any, Any] = {}
    tokens = prompt
    for end in range(1, 205):
        logits, _ = decoder(tokens[:, :end], state)
        if end >= 5:
            tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    ours = generate(model, prompt, SamplingParams(temperature=0, max_tokens=200))
    assert [int(token) for token in ours] == tokens[0, 5:].tolist()
    assert len(set(tokens[0, 5:].tolist())) > 10


@pytest.mark.parametrize("settings", EVERY_SETTING[:2], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(
    decoder_classes: tuple[Any, Any], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """Out again bit by bit, buffers too; and torchscale takes it."""
    decoder = make_decoder(decoder_classes, layernorm_embedding=True, **settings)
    weights = {
        name: tensor if name in (ANGLE, DECAY) else tensor.to(dtype)
        for name, tensor in decoder.state_dict().items()
    }
    written, fields = to_torchscale(from_torchscale(weights, vars(decoder.args)))
    assert written.keys() == weights.keys()
    for name, tensor in weights.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor), name
    assert fields.items() <= vars(decoder.args).items()
    config_class, decoder_class = decoder_classes
    again = decoder_class(config_class(**fields), torch.nn.Embedding(VOCAB, 64))
    again.load_state_dict(written)


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_pairing": "halves"},
        {"rotary_frequencies": "rope", "decay": "wide", "feed_forward": "geglu"},
        {"decay": [0.5, 0.9, 0.99, 1.0], "tie_embeddings": False, "score_norm": "paper"},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_model_of_ours_in_torchscale(
    decoder_classes: tuple[Any, Any], changes: dict[str, Any]
) -> None:
    """Decays and frequencies that torchscale has no setting for come with its buffers."""
    norms = {"norm": "rmsnorm", "head_norm": "rmsnorm", "score_norm": "decay"}
    settings = {"feed_forward": "swiglu", **norms, **changes}
    model = RetNet(ModelConfig(vocab_size=VOCAB, d_model=32, **settings)).eval()
    weights, fields = to_torchscale(model)
    config_class, decoder_class = decoder_classes
    decoder = decoder_class(config_class(**fields), torch.nn.Embedding(VOCAB, 32)).eval()
    decoder.load_state_dict(weights)
    form = recurrent_logits if model.config.score_norm == "decay" else lambda d, x: d(x)[0]
    assert largest_difference(model, form(decoder, drawn_tokens())) < 2e-5
    again = from_torchscale(weights, fields, score_norm=model.config.score_norm)
    assert largest_difference(again, model(drawn_tokens())[0]) < 2e-5


# Without torchscale: version 1, and what is refused


FIELDS: dict[str, Any] = {
    "vocab_size": 11,
    "decoder_embed_dim": 8,
    "decoder_value_embed_dim": 12,
    "decoder_retention_heads": 2,
    "decoder_ffn_embed_dim": 10,
    "decoder_layers": 2,
}


def drawn_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=rng, dtype=torch.float64) * shape[-1] ** -0.5
        for name, shape in shapes.items()
    }


def version_2_weights() -> dict[str, Tensor]:
    projections = {"q_proj": (8, 8), "k_proj": (8, 8), "v_proj": (12, 8), "g_proj": (12, 8)}
    layer = {
        **{f"retention.{name}": shape for name, shape in projections.items()},
        "retention.out_proj": (8, 12),
        "retention_layer_norm": (8,),
        "final_layer_norm": (8,),
        "ffn.fc1": (10, 8),
        "ffn.gate": (10, 8),
        "ffn.fc2": (8, 10),
    }
    shapes = {f"layers.{n}.{name}.weight": shape for n in (0, 1) for name, shape in layer.items()}
    outside = {"embed_tokens": (11, 8), "output_projection": (11, 8), "layer_norm": (8,)}
    return drawn_weights(shapes | {f"{name}.weight": shape for name, shape in outside.items()})


def version_1_weights(*, with_norm: bool) -> dict[str, Tensor]:
    """July to September 2023: biases everywhere, V = 2 D, fc1 and fc2 with a norm between.

    with_norm: that one, and one after the embedding.
    """
    layer: dict[str, tuple[int, ...]] = {
        **{f"retention.{name}_proj": (8, 8) for name in "qk"},
        **{f"retention.{name}_proj": (16, 8) for name in "vg"},
        "retention.out_proj": (8, 16),
        "retention_layer_norm": (8,),
        "final_layer_norm": (8,),
        "ffn.fc1": (10, 8),
        "ffn.fc2": (8, 10),
        **({"ffn.ffn_layernorm": (10,)} if with_norm else {}),
    }
    modules = {f"layers.{n}.{name}": shape for n in (0, 1) for name, shape in layer.items()}
    modules["layer_norm"] = (8,)
    if with_norm:
        modules["layernorm_embedding"] = (8,)
    shapes = {f"{name}.weight": shape for name, shape in modules.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in modules.items()}
    shapes |= {"embed_tokens.weight": (11, 8), "output_projection.weight": (11, 8)}
    return drawn_weights(shapes)


def version_1_by_hand(w: Mapping[str, Tensor], tokens: Tensor, *, head_eps: float) -> Tensor:
    """The recurrent form of version 1, one row of tokens [T], written from its equations."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    gamma = [1 - 2.0**-5, 1 - 2.0**-6]
    theta = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    x = w["embed_tokens.weight"][tokens]
    if "layernorm_embedding.weight" in w:
        x = norm("layernorm_embedding", x)
    for layer in ("layers.0", "layers.1"):
        y = norm(f"{layer}.retention_layer_norm", x)
        q, k, v = (linear(f"{layer}.retention.{name}_proj", y) for name in "qkv")
        turn = torch.polar(torch.ones(()).double(), torch.arange(len(tokens))[:, None] * theta)
        heads = []
        for h in (0, 1):
            mine, values = slice(4 * h, 4 * h + 4), v[:, 8 * h : 8 * h + 8]
            qc = torch.view_as_complex(q[:, mine].unflatten(-1, (2, 2)).contiguous()) * turn
            kc = torch.view_as_complex(k[:, mine].unflatten(-1, (2, 2)).contiguous()) * turn / 2
            state, mass = torch.zeros(2, 8, dtype=torch.complex128), 0.0
            for n in range(len(tokens)):
                state = gamma[h] * state + torch.outer(kc[n].conj(), values[n].to(kc.dtype))
                mass = gamma[h] * mass + 1
                out = (qc[n] @ state).real / mass**0.5
                centred = out - out.mean()
                heads.append(centred / (centred.square().mean() + head_eps).sqrt())
        normed = torch.stack(heads).unflatten(0, (2, -1)).transpose(0, 1).flatten(1)
        gate = linear(f"{layer}.retention.g_proj", y)
        x = x + linear(f"{layer}.retention.out_proj", gate * gate.sigmoid() * normed)
        y = linear(f"{layer}.ffn.fc1", norm(f"{layer}.final_layer_norm", x))
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        if f"{layer}.ffn.ffn_layernorm.weight" in w:
            y = norm(f"{layer}.ffn.ffn_layernorm", y)
        x = x + linear(f"{layer}.ffn.fc2", y)
    return norm("layer_norm", x) @ w["output_projection.weight"].T


@pytest.mark.parametrize("head_eps", [None, 1e-5])
@pytest.mark.parametrize("with_norm", [False, True])
@torch.no_grad()
def test_version_1(with_norm: bool, head_eps: float | None) -> None:
    """As fairseq saved it, with a prefix before every name."""
    weights = version_1_weights(with_norm=with_norm)
    prefixed = {f"decoder.{name}": tensor for name, tensor in weights.items()}
    fields = {name: value for name, value in FIELDS.items() if name != "decoder_value_embed_dim"}
    model = from_torchscale(prefixed, fields, head_norm_eps=head_eps)
    tokens = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    expected = version_1_by_hand(weights, tokens, head_eps=head_eps or 1e-6)
    assert (model(tokens[None])[0][0] - expected).abs().max() < 1e-11
    assert "1e-06" in exactness(model.config) or head_eps
    assert version(model.config) == "1"


def test_the_models_weights_are_the_given_ones() -> None:
    """Nothing is copied: 3B parameters need to be there once."""
    weights = version_2_weights()
    model = from_torchscale(weights, FIELDS)
    embedding = model.backbone.embed_tokens.weight
    assert embedding.data_ptr() == weights["embed_tokens.weight"].data_ptr()
    assert embedding.requires_grad
    assert not model.training


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (log_decays("equation8", 2), "equation8"),
        (log_decays("equation8", 2).bfloat16(), "equation8"),
        (log_decays("linspace", 2).float(), "linspace"),
        (log_decays("wide", 2).float(), "wide"),
        (torch.tensor([0.5, 1.0], dtype=torch.float64).log(), (0.5, 1.0)),
    ],
)
def test_stored_decays(decay: Tensor, expected: object) -> None:
    """The rule, where they are one's after rounding; else themselves."""
    model = from_torchscale(version_2_weights() | {DECAY: decay}, FIELDS)
    assert model.config.decay == expected


def test_epsilons_are_told_once_where_they_are_equal() -> None:
    settings: dict[str, Any] = {"score_norm": "decay", "norm_eps": 1e-6}
    equal = exactness(ModelConfig(**settings, head_norm_eps=1e-6))
    assert "with epsilon 1e-06; its other forms" in equal
    assert len(equal) < 160
    unequal = exactness(ModelConfig(**settings, head_norm_eps=1e-5))
    assert "with epsilon 1e-06, in the norm of each head 1e-05; its other forms" in unequal


def test_gammas_that_fp32_rounds_to_one() -> None:
    """1 - 2^-25 is 1 in fp32, so a stored log decay of 0 stands for it."""
    heads = torch.arange(24, dtype=torch.float32)
    fields = {**FIELDS, "decoder_retention_heads": 24, "decoder_embed_dim": 48}
    stored = (1 - 2 ** (-5 - heads)).log()
    assert stored[-1] == 0
    with pytest.raises(CheckpointError, match="weights and fields disagree"):
        from_torchscale(version_2_weights() | {DECAY: stored}, fields)  # got past the decays


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


def with_tensor(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: tensor})


KEY = "layers.1.retention.k_proj.weight"
BAD: dict[str, tuple[dict[str, Any], Callable[[dict[str, Tensor]], object] | None, str]] = {
    "deepnorm": ({"deepnorm": True}, None, "deepnorm=True can't be converted exactly"),
    "experts": ({"moe_freq": 2}, None, "moe_freq=2 can't be converted"),
    "multiway": ({"multiway": True}, None, "multiway=True can't be converted"),
    "relu": ({"activation_fn": "relu"}, None, "activation_fn='relu' can't be converted; only"),
    "no heads": ({"decoder_retention_heads": None}, None, "'decoder_retention_heads' must be a"),
    "a width of text": ({"decoder_embed_dim": "8"}, None, "'decoder_embed_dim' must be a positive"),
    "an epsilon of text": ({"layernorm_eps": "no"}, None, "'layernorm_eps' must be a number"),
    "a switch of text": ({"no_scale_embedding": "no"}, None, "must be true or false, got 'no'"),
    "heads that don't divide": ({"decoder_retention_heads": 3}, None, "num_heads must divide"),
    "another vocabulary": ({"vocab_size": 12}, None, "'vocab_size' is 12 and the embedding has 11"),
    "more layers": ({"decoder_layers": 3}, None, r"disagree \(10\): layers.2.*is missing"),
    "tied, it says": (
        {"share_decoder_input_output_embed": True},
        None,
        "output_projection.weight is not embed_tokens.weight",
    ),
    "experts by name": (
        {},
        with_tensor("layers.0.moe_layer.gate.wg.weight", torch.ones(1)),
        "is of a mixture of experts",
    ),
    "multiway by name": (
        {},
        with_tensor("layers.0.retention.q_proj.A.weight", torch.ones(1)),
        "is of a multiway network",
    ),
    "flattened": ({}, with_tensor("flat_param_0", torch.ones(1)), "gather a full state dict"),
    "norms after blocks": ({}, without("layer_norm.weight"), "norms come after the blocks"),
    "no embedding": ({}, without("embed_tokens.weight"), "embed_tokens.weight is missing"),
    "no head": ({}, without("output_projection.weight"), "output_projection.weight is missing"),
    "a tensor missing": ({}, without(KEY), rf"disagree \(1\): {KEY} is missing"),
    "a tensor too many": ({}, with_tensor("extra", torch.ones(1)), r"\(1\): extra is not of this"),
    "another shape": ({}, with_tensor(KEY, torch.ones(8, 9)), rf"{KEY} is \[8, 9\], expected \[8,"),
    "not numbers": (
        {},
        with_tensor(KEY, torch.full((8, 8), torch.nan)),
        "can't be used .*holds NaN",
    ),
    "integers": ({}, with_tensor(KEY, torch.ones(8, 8).int()), "torch.int32, expected a float"),
    "other angles": ({}, with_tensor(ANGLE, torch.tensor([1, 1, 2, 2.0])), "no schedule that is"),
    "decays of others": (
        {},
        with_tensor(DECAY, torch.zeros(3)),
        r"decay has the shape \[3\] and decoder_retention_heads says 2; pass",
    ),
    "a decay of NaN": ({}, with_tensor(DECAY, torch.tensor([-0.1, torch.nan])), "decay holds NaN"),
    "gammas above one": ({}, with_tensor(DECAY, torch.ones(2)), r"gammas in \(0, 1\]"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_refused(bad: str) -> None:
    changes, change, message = BAD[bad]
    weights = version_2_weights()
    if change is not None:
        change(weights)
    with pytest.raises(ValueError, match=message):
        from_torchscale(weights, FIELDS | changes)


def test_version_1_with_another_activation() -> None:
    with pytest.raises(CheckpointError, match="version 1 with activation_fn='swish'"):
        from_torchscale(version_1_weights(with_norm=True), FIELDS | {"activation_fn": "swish"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "layernorm"}, "torchscale can't express norm='layernorm', only 'rmsnorm'"),
        ({"head_norm_affine": True}, "head_norm_affine=True, only False"),
        ({"feed_forward": "gelu"}, "feed_forward='gelu', only 'geglu' or 'swiglu'"),
        ({"bias": True}, "bias=True"),
        ({"score_norm": "none"}, "score_norm='none', only 'decay' or 'paper'"),
        ({"head_norm_eps": 1e-3}, "head_norm_eps unlike norm_eps, got 0.001 and 1e-05"),
        ({"key_size": 4}, "key_size unlike d_model / num_heads, got 4 and 16 / 2"),
    ],
)
def test_what_torchscale_can_not_express(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "d_model": 16,
        "num_heads": 2,
        "norm": "rmsnorm",
        "head_norm": "rmsnorm",
        "feed_forward": "geglu",
        "score_norm": "decay",
    }
    with pytest.raises(CheckpointError, match=message):
        to_torchscale(RetNet(ModelConfig(**settings | changes)))
