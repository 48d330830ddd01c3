"""What other projects call the tensors that are ours."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from retnet.checkpoint.files import CheckpointError
from retnet.checkpoint.weights import check_weights, expected_shapes
from retnet.config import ModelConfig

_LAYERS = "backbone.layers."


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Another project's names.

    Attributes:
        layers: what stands before the number of a layer.
        outside: our name of a module outside the layers -> theirs.
        inside: our name of a module within a layer -> theirs.
    """

    layers: str
    outside: Mapping[str, str]
    inside: Mapping[str, str]

    def theirs(self, name: str) -> str:
        """Their name of a tensor of ours: "backbone.norm.weight" -> "layer_norm.weight"."""
        module, _, kind = name.rpartition(".")
        if not module.startswith(_LAYERS):
            return f"{self.outside[module]}.{kind}"
        number, _, module = module.removeprefix(_LAYERS).partition(".")
        return f"{self.layers}{number}.{self.inside[module]}.{kind}"

    def taken(
        self, weights: Mapping[str, Tensor], config: ModelConfig, project: str
    ) -> dict[str, Tensor]:
        """Their tensors by our names; CheckpointError unless they are all those of the model.

        They keep the memory they have: nothing is copied. project: whose they are, for messages.
        """
        shapes = expected_shapes(config)
        names = {name: self.theirs(name) for name in shapes}
        expected = {theirs: shapes[name] for name, theirs in names.items()}
        check_weights(weights, expected, f"{project} weights", "fields")
        return {name: weights[theirs].detach() for name, theirs in names.items()}

    def given(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by their names."""
        return {self.theirs(name): tensor.detach() for name, tensor in weights.items()}


def without_tied_head(
    weights: Mapping[str, Tensor], embedding: str, head: str
) -> dict[str, Tensor]:
    """The weights of a tied model, which may hold its head too, without it.

    embedding, head: their names. CheckpointError where the two differ.
    """
    if head in weights and not torch.equal(weights[head], weights[embedding]):
        raise CheckpointError(
            f"{head} is not {embedding}, though the fields say that they are tied; "
            "pass the configuration that belongs to these weights"
        )
    return {name: tensor for name, tensor in weights.items() if name != head}
