import pytest
from torch import nn

from retnet.config import ModelConfig
from retnet.model import RetNet
from retnet.train.config import OptimizerConfig
from retnet.train.optimizer import make_optimizer, set_learning_rate_


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_only_matrices_decay(tie_embeddings: bool) -> None:
    model = RetNet(
        ModelConfig(d_model=32, num_layers=2, num_heads=2, bias=True, tie_embeddings=tie_embeddings)
    )
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.1))
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    linear = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear)}
    assert {id(weight) for weight in decayed["params"]} == linear
    every = [*decayed["params"], *others["params"]]
    assert len(every) == len({id(weight) for weight in every}) == len(list(model.parameters()))
    assert any(weight is model.backbone.embed_tokens.weight for weight in others["params"])


def test_settings_arrive() -> None:
    optimizer = make_optimizer(
        nn.Linear(2, 2), OptimizerConfig(betas=(0.8, 0.95), learning_rate=0.5)
    )
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    set_learning_rate_(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
