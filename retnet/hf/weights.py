"""Weights as Transformers loads them: all there and finite, or an error; what is new is drawn."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from retnet.model import initialise_parameter_


def require_whole(
    model: PreTrainedModel, missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """ValueError where weights of a loaded model's backbone are missing, not its own, or where any
    is not finite.

    missing, unexpected: the names that Transformers reports.
    """
    prefix = f"{model.base_model_prefix}."
    problems = [f"{name} is missing" for name in missing if name.startswith(prefix)]
    problems += [f"{name} is not of this model" for name in unexpected if name.startswith(prefix)]
    problems += [
        f"{name} is not finite"
        for name, weight in model.named_parameters()
        if type(weight) is nn.Parameter and not weight.is_meta and not weight.isfinite().all()
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:3])
        raise ValueError(
            f"{model.name_or_path}: the weights are not a whole model's ({len(problems)}): "
            f"{listed}; drop the settings that you override, save it again, or `retnet convert` "
            "it if another project wrote it"
        )


@torch.no_grad()
def draw_missing_(name: str, module: nn.Module) -> None:
    """Draw a module's own weights that were not loaded, by the core's rule for its name."""
    for kind, parameter in module.named_parameters(recurse=False):
        if not getattr(parameter, "_is_hf_initialized", False):
            initialise_parameter_(f"{name}.{kind}", parameter)
