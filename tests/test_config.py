"""The configuration: what it derives, what it refuses, and the sizes that have names."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retnet.config import PRESETS, ModelConfig, nearest, preset
from retnet.model import RetNet

PAPER = ("200m", "1.3b", "2.7b", "6.7b", "13b")


def meta_model(config: ModelConfig) -> RetNet:
    with torch.device("meta"):
        return RetNet(config)


def num_matrix_parameters(model: RetNet) -> int:
    """Parameters of the blocks that are matrices: no norms, no embeddings."""
    return sum(x.numel() for x in model.backbone.layers.parameters() if x.dim() == 2)


@pytest.mark.parametrize("name", PAPER)
def test_paper_models_have_12_d_squared_parameters_a_layer(name: str) -> None:
    """Section 3.1: 8 d^2 in retention and 4 d^2 in the feed forward, counted in the built model."""
    config = PRESETS[name]
    model = meta_model(config)
    for layer in model.backbone.layers:
        assert sum(x.numel() for x in layer.parameters() if x.dim() == 2) == 12 * config.d_model**2
    assert num_matrix_parameters(model) == config.num_layers * config.layer_parameters


def test_paper_models_are_those_of_its_tables() -> None:
    """Tables 2 and 7 and section 3.5: width, layers, heads, FFN; heads of 256 and 512 numbers."""
    sizes = {
        "200m": (1024, 16, 4, 2048),
        "1.3b": (2048, 24, 8, 4096),
        "2.7b": (2560, 32, 10, 5120),
        "6.7b": (4096, 32, 16, 8192),
    }
    for name, expected in sizes.items():
        config = PRESETS[name]
        chosen = (config.d_model, config.num_layers, config.num_heads, config.ffn_size)
        assert chosen == expected
        assert (config.key_size, config.value_size) == (256, 512)
        assert config.decay == "linspace"
        assert config.dropout == 0.1
    billions = [PRESETS[name].num_layers * PRESETS[name].layer_parameters / 1e9 for name in PAPER]
    assert [round(x, 3) for x in billions] == [0.201, 1.208, 2.517, 6.442, 12.583]


@pytest.mark.parametrize(
    ("name", "millions"), [("200m", 8.4), ("1.3b", 25.2), ("2.7b", 41.9), ("6.7b", 67.1)]
)
def test_paper_models_states(name: str, millions: float) -> None:
    """L h 256 512 numbers for each sequence."""
    assert round(PRESETS[name].state_numbers / 1e6, 1) == millions


@pytest.mark.parametrize("name", PRESETS)
def test_presets_follow_the_papers_allocation(name: str) -> None:
    config = preset(name)
    assert config == PRESETS[name]
    rounding = 0 if config.feed_forward == "gelu" else 0.006  # of the gated width
    assert config.layer_parameters == pytest.approx(12 * config.d_model**2, rel=rounding, abs=0)


@pytest.mark.parametrize("score_norm", ["none", "decay", "paper"])
@pytest.mark.parametrize("sizes", [{}, {"key_size": 6, "value_size": 10}])
def test_state_numbers_are_those_of_a_state(score_norm: str, sizes: dict[str, int]) -> None:
    config = ModelConfig(d_model=32, num_layers=3, score_norm=score_norm, **sizes)
    _, state = RetNet(config)(torch.zeros(1, 2, dtype=torch.int64))
    assert sum(layer.numel() for layer in state.layers) == config.state_numbers
    assert state.num_bytes == 4 * config.state_numbers


@pytest.mark.parametrize("feed_forward", ["gelu", "swiglu", "geglu"])
def test_parameters_and_flops_are_those_of_the_model(feed_forward: str) -> None:
    """Two operations for each weight that a token meets, five for each number of the state."""
    norms = {"ffn_norm": True, "embedding_norm": True}
    config = ModelConfig(feed_forward=feed_forward, value_size=48, ffn_size=100, **norms)
    model = meta_model(config)
    matrices = num_matrix_parameters(model)
    assert config.num_layers * config.layer_parameters == matrices
    head = model.backbone.embed_tokens.weight.numel()
    assert config.flops_per_token == 2 * (matrices + head) + 5 * config.state_numbers


def test_derived_sizes() -> None:
    config = ModelConfig(d_model=96, num_heads=4)
    assert (config.key_size, config.value_size, config.ffn_size) == (24, 48, 192)
    assert ModelConfig(d_model=96, feed_forward="swiglu").ffn_size == 128
    assert ModelConfig(d_model=128, feed_forward="swiglu").ffn_size == 168  # 170.7, by eights.
    assert ModelConfig(d_model=2, num_heads=1, feed_forward="swiglu").ffn_size > 0
    assert ModelConfig(d_model=96, key_size=8).value_size == 16
    given_sizes = ModelConfig(d_model=10, num_heads=3, key_size=4, value_size=5, ffn_size=7)
    assert (given_sizes.key_size, given_sizes.value_size, given_sizes.ffn_size) == (4, 5, 7)


def test_swiglu_costs_what_gelu_does() -> None:
    """Three matrices of 4/3 D for two of 2 D."""
    assert ModelConfig(d_model=768, feed_forward="swiglu").layer_parameters == 12 * 768**2


def test_preset_sizes_follow_what_is_changed() -> None:
    changed = preset("tiny", num_heads=8, d_model=512)
    assert (changed.key_size, changed.value_size, changed.ffn_size) == (64, 128, 680)
    assert preset("1.3b", dropout=0.0).dropout == 0.0


@given(
    num_heads=st.integers(1, 5),
    gammas=st.lists(st.floats(1e-3, 1.0), min_size=5, max_size=5),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "score_norm": st.sampled_from(["none", "decay", "paper"]),
            "head_norm": st.sampled_from(["layernorm", "rmsnorm"]),
            "feed_forward": st.sampled_from(["gelu", "swiglu", "geglu"]),
            "ffn_norm": st.booleans(),
            "embedding_norm": st.booleans(),
            "rotary_pairing": st.sampled_from(["interleaved", "halves"]),
            "head_norm_eps": st.floats(0, 1e-3),
            "bias": st.booleans(),
            "tie_embeddings": st.booleans(),
            "dropout": st.floats(0, 0.9),
        },
    ),
)
def test_json_round_trip(num_heads: int, gammas: list[float], changes: dict[str, object]) -> None:
    config = ModelConfig(
        d_model=4 * num_heads, num_heads=num_heads, decay=gammas[:num_heads], **changes
    )
    restored = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config
    assert hash(restored) == hash(config)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().d_model = 3  # type: ignore[misc]


BAD: dict[str, tuple[dict[str, object], str]] = {
    "unknown rule": ({"decay": "linspce"}, "decay must be one of .*'linspace'.* got 'linspce'"),
    "unknown norm": ({"norm": "batch"}, "norm must be one of 'layernorm', 'rmsnorm', got 'batch'"),
    "unknown head norm": ({"head_norm": "group"}, "head_norm must be one of .* got 'group'"),
    "unknown score norm": ({"score_norm": "papr"}, "score_norm must be one of .* got 'papr'"),
    "unknown feed forward": ({"feed_forward": "relu"}, "feed_forward must be one of .* got 'relu'"),
    "unknown pairing": ({"rotary_pairing": "half"}, "rotary_pairing must be one of .* got 'half'"),
    "unknown frequencies": ({"rotary_frequencies": "x"}, "rotary_frequencies must be one of"),
    "gammas of too few heads": ({"decay": [0.9]}, "one gamma a head, got 1 for 4 heads"),
    "log gammas": ({"decay": [-0.1] * 4}, r"in \(0, 1\], .*pass gamma, not log\(gamma\)"),
    "gamma of zero": ({"decay": [0.9, 0.9, 0.9, 0.0]}, r"decay must list gammas in \(0, 1\]"),
    "gamma above one": ({"decay": [0.9, 0.9, 0.9, 1.1]}, r"decay must list gammas in \(0, 1\]"),
    "gamma that is no number": ({"decay": [0.9, 0.9, 0.9, float("nan")]}, "decay must list gammas"),
    "one gamma for all": ({"decay": 0.9}, "decay must"),
    "gammas of text": ({"decay": ["a", "b", "c", "d"]}, "decay must"),
    "no layers": ({"num_layers": 0}, "num_layers must be .* got 0"),
    "a float": ({"d_model": 256.0}, "d_model must be .* got 256.0"),
    "a bool": ({"d_model": True}, "d_model must be .* got True"),
    "text": ({"vocab_size": "259"}, "vocab_size must be .* got '259'"),
    "negative": ({"ffn_size": -1}, "ffn_size must be .* got -1"),
    "heads that do not divide": ({"num_heads": 3}, "num_heads must divide d_model, got 3 and 256"),
    "odd keys": ({"key_size": 7}, "key_size must be even .* got 7"),
    "odd derived keys": ({"d_model": 12, "num_heads": 4}, "key_size must be even .* got 3"),
    "negative epsilon": ({"norm_eps": -1e-5}, "norm_eps must be >= 0, got -1e-05"),
    "epsilon of text": ({"head_norm_eps": "1e-5"}, "head_norm_eps must be .* got '1e-5'"),
    "a switch of text": ({"ffn_norm": "no"}, "ffn_norm must be true or false, got 'no'"),
    "a switch of a number": ({"tie_embeddings": 1}, "tie_embeddings must be true or false, got 1"),
    "dropout of one": ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    "dropout of text": ({"dropout": "0.1"}, "dropout must be .* got '0.1'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_value(bad: str) -> None:
    changes, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        ModelConfig(**changes)  # type: ignore[arg-type]


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown model setting 'd_modle'; did you mean 'd_model'"):
        ModelConfig.from_dict({"d_modle": 3})
    with pytest.raises(ValueError, match="'num_head'; did you mean 'num_heads'"):
        preset("tiny", num_head=3)


def test_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"unknown preset '1.3'; did you mean '1.3b'\?; there are"):
        preset("1.3")
    with pytest.raises(ValueError, match=r"there are tiny, .*13b$"):
        preset("colossal")


def test_nearest_says_nothing_where_nothing_is_near() -> None:
    assert nearest("zzz", ["d_model", "decay"]) == ""
    assert nearest("dcay", {"d_model": 1, "decay": 2}) == "; did you mean 'decay'?"
