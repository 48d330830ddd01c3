"""Models of syncdoth/RetNet, version 2 (since October 2023): torchscale's by other names."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from retnet.checkpoint import fields as field
from retnet.checkpoint import torchscale
from retnet.checkpoint.torchscale import ImportedNorm, import_decoder
from retnet.config import ModelConfig
from retnet.model import RetNet

# A feed forward without gate has biases there, which the retention beside it has not.
_ONLY = {"use_glu": True}


def from_syncdoth(
    state_dict: Mapping[str, Tensor],
    fields: Mapping[str, Any],
    *,
    score_norm: ImportedNorm = "decay",
) -> RetNet:
    """The model of a `RetNetForCausalLM` of syncdoth/RetNet.

    Exact, with its epsilon (`layernorm_eps`, everywhere): for its recurrent form with score_norm
    "decay", with "paper" for its parallel form as it was while it divided by max(|row sum|, 1).

    Args:
        state_dict: of the model with its head. The model's weights are these tensors, not copies.
        fields: of its config.json. `use_lm_decay` is the decay "linspace".
        score_norm: which form is followed.

    Raises:
        CheckpointError: as `from_torchscale` does, and for use_glu=False.
    """
    field.refuse_unless(fields, _ONLY, "syncdoth")
    weights = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    is_tied = field.flag(fields, "tie_word_embeddings", False)
    return import_decoder(
        weights,
        {**fields, "share_decoder_input_output_embed": is_tied},
        score_norm=score_norm,
        head="lm_head",
        decay="linspace" if field.flag(fields, "use_lm_decay", False) else "equation8",
    )


def exactness(config: ModelConfig) -> str:
    """Which form of syncdoth's a model of ours is, and with which epsilons, in words."""
    until = "while it divided by max(|row sum|, 1)"
    return torchscale.exactness(config, project="syncdoth", until=until)
