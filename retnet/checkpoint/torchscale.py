"""Models of torchscale (`RetNetDecoder`), in and out.

What divides a head's output before its norm, and which `score_norm` of ours does the same:

    recurrent form, since 4 August 2023      sqrt(Z_n)                        "decay"
    parallel form, 0.3.0 and before          max(|sum_m R_nm|, sqrt(Z_n))     "paper"
    parallel form, since 23 November 2023    sum_m |R_nm|, at least sqrt(Z_n) none: it has no state
    chunkwise form                           depends on the cut into chunks   none

They cancel in the norm but for its epsilon. Decays and angles, which torchscale rounds to fp32, are
computed here in fp64.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from retnet.checkpoint import fields as field
from retnet.checkpoint.files import CheckpointError
from retnet.checkpoint.naming import Naming, without_tied_head
from retnet.checkpoint.torchscale_buffers import BUFFERS, buffers_of, rules_of
from retnet.checkpoint.weights import build_model, with_pairing
from retnet.config import DecayRule, FeedForwardKind, ModelConfig
from retnet.model import RetNet

ImportedNorm = Literal["decay", "paper"]

_EMBEDDING = "backbone.embed_tokens.weight"
_FIRST_BIAS = "layers.0.retention.q_proj.bias"

_ONLY = {"deepnorm": False, "multiway": False, "moe_freq": 0, "use_xmoe": False}
_PARTS_REFUSED = {
    ".moe_layer.": "a mixture of experts",
    ".A.": "a multiway network",
    "flat_param": "flattened by FSDP (gather a full state dict first)",
}
_GATED: dict[Any, FeedForwardKind] = {"gelu": "geglu", "swish": "swiglu"}
_WRITTEN: dict[str, tuple[Any, ...]] = {
    "mixer": ("retention",),
    "gate": (True,),
    "norm": ("rmsnorm",),
    "head_norm": ("rmsnorm",),
    "head_norm_affine": (False,),
    "feed_forward": ("geglu", "swiglu"),
    "ffn_norm": (False,),
    "bias": (False,),
    "score_norm": ("decay", "paper"),
}


def from_torchscale(
    state_dict: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    *,
    score_norm: ImportedNorm = "decay",
    head_norm_eps: float | None = None,
) -> RetNet:
    """The model of a torchscale `RetNetDecoder`, version 1 (July to September 2023) or 2 (since).

    Exact, with torchscale's epsilons: for its recurrent form with score_norm "decay", for its
    parallel form up to 0.3.0 with "paper".

    Args:
        state_dict: of the decoder, or of fairseq's model around it (all names begin "decoder.").
            The model's weights are these tensors, not copies.
        fields: the attributes of its configuration: `vars(config)`, or fairseq's `vars(args)`.
        score_norm: which form is followed.
        head_norm_eps: the epsilon of the norm of each head. None for `layernorm_eps` in version 2,
            and in version 1 for 1e-6, as it was from 2 August to 26 September 2023 (before and
            after it was `layernorm_eps`).

    Raises:
        CheckpointError: for what can't be exact (mixtures of experts, multiway, deepnorm, norms
            after the blocks, other activations), and for tensors that are missing, too many, of
            other shapes or not finite.
    """
    weights = {name.removeprefix("decoder."): tensor for name, tensor in state_dict.items()}
    return import_decoder(weights, fields, score_norm=score_norm, head_norm_eps=head_norm_eps)


def import_decoder(
    weights: dict[str, Tensor],
    fields: Mapping[str, Any],
    *,
    score_norm: ImportedNorm,
    head_norm_eps: float | None = None,
    head: str = "output_projection",
    decay: DecayRule = "equation8",
) -> RetNet:
    """`from_torchscale` where the output head has this name; `decay` is for weights without it."""
    _refuse_other_kinds(weights, fields)
    is_tied = field.flag(fields, "share_decoder_input_output_embed", False)
    is_scaled = not field.flag(fields, "no_scale_embedding", True)
    config = ModelConfig.from_dict(
        _common(weights, fields)
        | rules_of(weights, field.size(fields, "decoder_retention_heads"), decay)
        | (_version_1 if _FIRST_BIAS in weights else _version_2)(weights, fields, head_norm_eps)
        | {"score_norm": score_norm, "tie_embeddings": is_tied and not is_scaled}
    )
    theirs = {name: tensor for name, tensor in weights.items() if name not in BUFFERS}
    if is_tied:
        theirs = without_tied_head(theirs, "embed_tokens.weight", f"{head}.weight")
        theirs |= {f"{head}.weight": weights["embed_tokens.weight"]} if is_scaled else {}
    ours = _naming(config, head).taken(theirs, config, "torchscale")
    if is_scaled:
        # As torchscale multiplies: rounded to the weights' dtype. The head is never scaled.
        ours[_EMBEDDING] = ours[_EMBEDDING] * config.d_model**0.5
    return build_model(config, ours)


def to_torchscale(model: RetNet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and configuration fields of a `RetNetDecoder` of torchscale 0.3.0.

    Exact for its recurrent form where score_norm is "decay", for its parallel form where it is
    "paper". Its own decays and angles are fp32, in buffers that come with the state dict, so any
    decay can be told. What `from_torchscale` read comes out bit by bit, unless its embedding was
    scaled. Tensors are those of the model where no row has to move.

    Raises:
        CheckpointError: naming a setting that torchscale doesn't have.
    """
    config = model.config
    field.require_settings(config, _WRITTEN, "torchscale")
    if config.num_heads * config.key_size != config.d_model:
        raise CheckpointError(
            "torchscale can't express key_size unlike d_model / num_heads, got "
            f"{config.key_size} and {config.d_model} / {config.num_heads}"
        )
    weights = with_pairing(model.state_dict(), config, "interleaved")
    state_dict = _naming(config).given(weights)
    if config.tie_embeddings:
        state_dict["output_projection.weight"] = state_dict["embed_tokens.weight"].clone()
    return state_dict | buffers_of(config), _written_fields(config)


def version(config: ModelConfig) -> str:
    """Which version of torchscale has such models: "1" (July to September 2023) or "2"."""
    return "1" if config.bias else "2"


def exactness(config: ModelConfig, project: str = "torchscale", until: str = "up to 0.3.0") -> str:
    """Which form of torchscale's a model of ours is, and with which epsilons, in words.

    until: which versions have that parallel form.
    """
    form = {
        "decay": "recurrent form (a head's output over sqrt(Z_n))",
        "paper": f"parallel form {until} (a head's output over max(|row sum|, sqrt(Z_n)))",
    }[config.score_norm]
    of_heads = ""
    if config.head_norm_eps != config.norm_eps:
        of_heads = f", in the norm of each head {config.head_norm_eps:g}"
    return (
        f"the same function as {project}'s {form} with epsilon {config.norm_eps:g}{of_heads}; its "
        "other forms differ only by what that epsilon does"
    )


def _naming(config: ModelConfig, head: str = "output_projection") -> Naming:
    projections = ("q_proj", "k_proj", "v_proj", "g_proj", "out_proj")
    feed_forward = {"up_proj": "fc1", "inner_norm": "ffn_layernorm", "down_proj": "fc2"}
    if config.feed_forward != "gelu":  # fc1 is what the activation is applied to
        feed_forward = {"gate_proj": "fc1", "up_proj": "gate", "down_proj": "fc2"}
    return Naming(
        layers="layers.",
        outside={
            "backbone.embed_tokens": "embed_tokens",
            "backbone.embedding_norm": "layernorm_embedding",
            "backbone.norm": "layer_norm",
            "lm_head": head,
        },
        inside={
            "mixer_norm": "retention_layer_norm",
            **{f"mixer.{name}": f"retention.{name}" for name in projections},
            "feed_forward_norm": "final_layer_norm",
            **{f"feed_forward.{ours}": f"ffn.{name}" for ours, name in feed_forward.items()},
        },
    )


def _refuse_other_kinds(weights: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
    field.refuse_unless(fields, _ONLY, "torchscale")
    for part, kind in _PARTS_REFUSED.items():
        found = next((name for name in weights if part in name), None)
        if found is not None:
            raise CheckpointError(f"{found} is of {kind}, which can't be converted")
    if "layer_norm.weight" not in weights:
        raise CheckpointError(
            "layer_norm.weight is missing: with decoder_normalize_before=False norms come after "
            "the blocks, which can't be converted"
        )


def _common(weights: Mapping[str, Tensor], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that both versions tell in the same way."""
    return {
        "vocab_size": field.vocabulary(fields, weights, "embed_tokens.weight"),
        "d_model": field.size(fields, "decoder_embed_dim"),
        "num_layers": field.size(fields, "decoder_layers"),
        "num_heads": field.size(fields, "decoder_retention_heads"),
        "ffn_size": field.size(fields, "decoder_ffn_embed_dim"),
        "embedding_norm": "layernorm_embedding.weight" in weights,
        "dropout": field.number(fields, "dropout", 0.0),
    }


def _version_1(
    weights: Mapping[str, Tensor], fields: Mapping[str, Any], head_norm_eps: float | None
) -> dict[str, Any]:
    """What is peculiar to July to September 2023: biases, means subtracted, no gate in the ffn."""
    if fields.get("activation_fn", "gelu") != "gelu":
        raise CheckpointError(
            f"torchscale version 1 with activation_fn={fields['activation_fn']!r} can't be "
            "converted; only with 'gelu'"
        )
    width, num_heads = (
        field.size(fields, name) for name in ("decoder_embed_dim", "decoder_retention_heads")
    )
    return {
        "value_size": 2 * width // num_heads,
        "norm_eps": field.number(fields, "layernorm_eps", 1e-5),
        "head_norm_eps": 1e-6 if head_norm_eps is None else head_norm_eps,
        "ffn_norm": "layers.0.ffn.ffn_layernorm.weight" in weights,
        "bias": True,
    }


def _version_2(
    weights: Mapping[str, Tensor], fields: Mapping[str, Any], head_norm_eps: float | None
) -> dict[str, Any]:
    """What is peculiar to the time since: root mean squares, no biases, a gate in the ffn."""
    activation = fields.get("activation_fn", "gelu")
    if activation not in _GATED:
        raise CheckpointError(
            f"torchscale with activation_fn={activation!r} can't be converted; only with "
            f"{' or '.join(map(repr, _GATED))}"
        )
    values = field.size(fields, "decoder_value_embed_dim")
    norm_eps = field.number(fields, "layernorm_eps", 1e-6)
    return {
        "value_size": values // field.size(fields, "decoder_retention_heads"),
        "norm": "rmsnorm",
        "norm_eps": norm_eps,
        "head_norm": "rmsnorm",
        "head_norm_eps": norm_eps if head_norm_eps is None else head_norm_eps,
        "feed_forward": _GATED[activation],
    }


def _written_fields(config: ModelConfig) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in _GATED.items()}
    return {
        "vocab_size": config.vocab_size,
        "decoder_embed_dim": config.d_model,
        "decoder_value_embed_dim": config.num_heads * config.value_size,
        "decoder_retention_heads": config.num_heads,
        "decoder_ffn_embed_dim": config.ffn_size,
        "decoder_layers": config.num_layers,
        "decoder_normalize_before": True,
        "activation_fn": activations[config.feed_forward],
        "layernorm_eps": config.norm_eps,
        "layernorm_embedding": config.embedding_norm,
        "no_scale_embedding": True,
        "share_decoder_input_output_embed": config.tie_embeddings,
        "dropout": config.dropout,
        "deepnorm": False,
        "multiway": False,
        "moe_freq": 0,
        "chunkwise_recurrent": False,
        "recurrent_chunk_size": 512,
    }
