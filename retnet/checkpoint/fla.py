"""RetNets of flash-linear-attention (`fla.models.RetNetForCausalLM`), in and out.

They divide a head's output by nothing before its norm, rotate the halves of a head with the
frequencies of RoPE, and have decays by Eq. 8. All four of their forms compute the same.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from torch import Tensor

from retnet.checkpoint import fields as field
from retnet.checkpoint.files import CheckpointError
from retnet.checkpoint.naming import Naming, without_tied_head
from retnet.checkpoint.weights import build_model, with_pairing
from retnet.config import ModelConfig
from retnet.model import RetNet

_ONLY = {
    "attn": None,  # attention in some layers
    "feature_map": None,
    "use_output_gate": True,
    "attnres_block_size": None,
}
_ACTIVATIONS = ("swish", "silu")

# Names of 2024, as parts of names, and what they became.
_RENAMED = {
    "model.embed_tokens.": "model.embeddings.",
    ".retnet_norm.": ".attn_norm.",
    ".attn.g_norm.": ".attn.g_norm_swish_gate.",
}

_WRITTEN: dict[str, tuple[Any, ...]] = {
    "mixer": ("retention",),
    "gate": (True,),
    "score_norm": ("none",),
    "rotary_frequencies": ("rope",),
    "decay": ("equation8",),
    "norm": ("rmsnorm",),
    "head_norm": ("rmsnorm",),
    "feed_forward": ("swiglu",),
    "ffn_norm": (False,),
    "embedding_norm": (False,),
    "bias": (False,),
}

_NAMING = Naming(
    layers="model.layers.",
    outside={
        "backbone.embed_tokens": "model.embeddings",
        "backbone.norm": "model.norm",
        "lm_head": "lm_head",
    },
    inside={
        "mixer_norm": "attn_norm",
        **{f"mixer.{name}": f"attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "g_proj")},
        "mixer.out_proj": "attn.o_proj",
        "mixer.head_norm": "attn.g_norm_swish_gate",
        "feed_forward_norm": "mlp_norm",
        **{f"feed_forward.{name}": f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    },
)


def from_fla(state_dict: Mapping[str, Tensor], fields: Mapping[str, Any]) -> RetNet:
    """The model of a `RetNetForCausalLM` of flash-linear-attention.

    Exact for all of its forms, with its epsilon (`norm_eps`, everywhere).

    Args:
        state_dict: of the model with its head, by its names of today or of 2024 (with the feed
            forward's gate_proj and up_proj in one matrix). The model's weights are these tensors,
            not copies.
        fields: of its config.json. `use_short_conv` means nothing there, and is ignored here.

    Raises:
        CheckpointError: for what can't be exact (attention in some layers, feature maps, fewer
            heads of keys than of queries, no gate, convolutions that are really there), and for
            tensors that are missing, too many, of other shapes or not finite.
    """
    weights = _with_names_of_today(state_dict)
    _refuse_other_kinds(weights, fields)
    config = _config(weights, fields)
    if config.tie_embeddings:
        weights = without_tied_head(weights, "model.embeddings.weight", "lm_head.weight")
    return build_model(config, _NAMING.taken(weights, config, "fla"))


def to_fla(model: RetNet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and configuration fields of a `RetNetForCausalLM`, by its names of today.

    Exact for all of its forms. What `from_fla` read comes out bit by bit. Tensors are those of the
    model where no row has to move. Its dropout, which fla doesn't have, is left out.

    Raises:
        CheckpointError: naming a setting that fla doesn't have.
    """
    config = model.config
    field.require_settings(config, _WRITTEN, "fla")
    keys, values = config.num_heads * config.key_size, config.num_heads * config.value_size
    fields = {
        "attn_mode": "chunk",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": None,
        "expand_k": _expansion(keys, config.d_model, "key_size"),
        "expand_v": _expansion(values, config.d_model, "value_size"),
        "feature_map": None,
        "hidden_ratio": None,
        "intermediate_size": config.ffn_size,
        "hidden_act": "swish",
        "use_short_conv": False,
        "use_output_gate": True,
        "elementwise_affine": config.head_norm_affine,
        "fuse_norm": True,  # under which the weight of the head norm has the name it has here
        "norm_eps": config.norm_eps,
        "attn": None,
        "tie_word_embeddings": config.tie_embeddings,
    }
    return _NAMING.given(with_pairing(model.state_dict(), config, "halves")), fields


def exactness(config: ModelConfig) -> str:
    """Which form of fla's a model of ours is, and with which epsilon, in words."""
    return (
        "the same function as each of fla's forms (nothing divides a head's output before its "
        f"norm) with epsilon {config.norm_eps:g}"
    )


def _with_names_of_today(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of today, the two in a fused mlp.gate_proj [2 F, D] parted."""
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        weights[name] = tensor
    for gate in [name for name in weights if name.endswith(".mlp.gate_proj.weight")]:
        up = gate.replace("gate_proj", "up_proj")
        if up not in weights:
            halves = weights[gate].chunk(2)
            weights |= dict(zip((gate, up), (half.clone() for half in halves), strict=False))
    return weights


def _refuse_other_kinds(weights: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
    field.refuse_unless(fields, _ONLY, "fla")
    num_heads = field.size(fields, "num_heads")
    field.refuse_unless(fields, {"num_kv_heads": num_heads}, f"fla, of {num_heads} heads,")
    activation = fields.get("hidden_act", "swish")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"fla models with hidden_act={activation!r} can't be converted; only with 'swish'"
        )
    convolution = next((name for name in weights if "conv1d" in name), None)
    if convolution is not None:
        raise CheckpointError(f"{convolution} is of a short convolution, which a RetNet has not")


def _config(weights: Mapping[str, Tensor], fields: Mapping[str, Any]) -> ModelConfig:
    width, num_heads = field.size(fields, "hidden_size"), field.size(fields, "num_heads")
    legacy_eps = field.number(fields, "rms_norm_eps", 1e-6)
    eps = field.number(fields, "norm_eps", legacy_eps)
    return ModelConfig(
        vocab_size=field.vocabulary(fields, weights, "model.embeddings.weight"),
        d_model=width,
        num_layers=field.size(fields, "num_hidden_layers"),
        num_heads=num_heads,
        key_size=int(width * field.number(fields, "expand_k", 1.0)) // num_heads,
        value_size=int(width * field.number(fields, "expand_v", 2.0)) // num_heads,
        ffn_size=_ffn_size(fields, width),
        decay="equation8",
        score_norm="none",
        head_norm="rmsnorm",
        head_norm_affine=field.flag(fields, "elementwise_affine", True),
        head_norm_eps=eps,
        norm="rmsnorm",
        norm_eps=eps,
        feed_forward="swiglu",
        rotary_pairing="halves",
        rotary_frequencies="rope",
        tie_embeddings=field.flag(fields, "tie_word_embeddings", False),
    )


def _ffn_size(fields: Mapping[str, Any], width: int) -> int:
    if fields.get("intermediate_size") is not None:
        return field.size(fields, "intermediate_size")
    ratio = field.number(fields, "hidden_ratio", 4)
    return 256 * ceil(int(width * ratio * 2 / 3) / 256)


def _expansion(total: int, width: int, name: str) -> float:
    """total / width, as fla stores it; it must give the total back."""
    ratio = total / width
    if int(width * ratio) != total:
        raise CheckpointError(f"fla can't express this {name}: {ratio} * {width} is not {total}")
    return ratio
