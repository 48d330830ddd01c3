"""Which project wrote a checkpoint: told by its fields and by the names of its tensors.

Never by `model_type`: five kinds of model that have little in common call themselves "retnet".
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from retnet.checkpoint.files import CheckpointError

Layout = Literal["torchscale", "syncdoth", "fla"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

# Fields that only the one has, of several that do the same for it.
_TORCHSCALE_FIELDS = ("decoder_retention_heads", "decoder_embed_dim")
_SYNCDOTH_FIELDS = ("use_glu", "use_lm_decay", "use_ffn_rms_norm", "forward_impl", "z_loss_coeff")
_FLA_FIELDS = ("expand_k", "expand_v", "num_hidden_layers")

# Kinds that are known and not read, each by a field of its own.
_REFUSED_FIELDS = {
    "groupnorm_affine": "an XATL model (biases, parallel residuals, attention in some layers)",
    "hybrid_attention_layers": "an XATL model (attention in some layers)",
    "qk_dim": "a model of syncdoth's first version (July to September 2023: xPos over all heads)",
    "num_rettention_heads": "a model in Flax with attention of its own",
}


def layout_of_fields(fields: Mapping[str, Any]) -> Layout | None:
    """The layout that a configuration is of; None where it is of none that is read."""
    if any(name in fields for name in _REFUSED_FIELDS):
        return None
    if all(name in fields for name in _TORCHSCALE_FIELDS):
        return "syncdoth" if any(name in fields for name in _SYNCDOTH_FIELDS) else "torchscale"
    return "fla" if all(name in fields for name in _FLA_FIELDS) else None


def layout_of_names(names: Collection[str]) -> Layout | None:
    """The layout that tensors are of, by their names; None where it is of none that is read."""
    if any(".retention.q_proj." in name for name in names):
        prefixed = any(name.startswith("model.layers.") for name in names)
        return "syncdoth" if prefixed else "torchscale"
    is_fla = any(name.endswith(".attn.g_proj.weight") for name in names)
    return "fla" if is_fla and any(".mlp.down_proj." in name for name in names) else None


def find_layout(fields: Mapping[str, Any], names: Collection[str], where: str) -> Layout:
    """The layout of a checkpoint; CheckpointError where fields and names don't agree on one."""
    for field, kind in _REFUSED_FIELDS.items():
        if field in fields:
            raise CheckpointError(f"{where} is {kind}, by its field {field!r}; it is not supported")
    by_fields, by_names = layout_of_fields(fields), layout_of_names(names)
    if by_fields is None:
        model_type = str(fields.get("model_type"))
        despite = f", whatever its model_type {model_type!r} says" if "retnet" in model_type else ""
        raise CheckpointError(
            f"{where} is of no layout that is read here ({', '.join(LAYOUTS)}): its fields are not "
            f"theirs{despite}"
        )
    if by_names is None:
        raise CheckpointError(
            f"{where} has the fields of {by_fields} and other tensors, such as "
            f"{min(names, default='none')!r}; it is another kind of model"
        )
    # syncdoth's names with fields that torchscale has, too: a class of transformers around that.
    if by_names != by_fields and (by_fields, by_names) != ("torchscale", "syncdoth"):
        raise CheckpointError(
            f"{where} has the fields of {by_fields} and the tensors of {by_names}; pass the "
            "configuration that belongs to these weights"
        )
    return by_names
