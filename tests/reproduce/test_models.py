"""What is compared has as many parameters as what it is compared with."""

import pytest

from retnet.config import ModelConfig
from retnet.model import RetNet
from retnet.reproduce.budgets import CONTEXT, COST, DECODING, LANGUAGE, SIZES
from retnet.reproduce.models import (
    ARCHITECTURES,
    ablations,
    count_parameters,
    variant,
    with_parameters,
)


def test_count_is_that_of_the_model() -> None:
    config = ModelConfig(d_model=32, num_layers=2, num_heads=2, mixer="hyena")
    model = RetNet(config)
    assert count_parameters(config) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("budget", ["smoke", "small", "paper"])
def test_equal_parameters(budget: str) -> None:
    """Within 2 %, for all architectures and ablations at all sizes that a budget compares."""
    base = dict(LANGUAGE[budget].model)  # type: ignore[index]
    bases = [base, *({**base, **size.model} for size in SIZES[budget].values())]  # type: ignore[index]
    for each in (*bases, COST[budget].model, DECODING[budget].model):  # type: ignore[index]
        plain = count_parameters(ModelConfig(**each))
        changes = [*ARCHITECTURES.values(), *ablations(each["num_heads"]).values()]
        if each["d_model"] < 64:  # Hyena's filters alone are larger
            changes = [ARCHITECTURES["Transformer"]]
        for one in changes:
            assert abs(count_parameters(variant(each, one)) / plain - 1) <= 0.02, one


def test_an_equal_model_stays_as_it_is() -> None:
    base = {"d_model": 64, "num_layers": 2, "num_heads": 2}
    assert variant(base, {}) == ModelConfig(**base)
    assert variant(base, {"mixer": "attention"}).ffn_size == 4 * 64


def test_too_large_a_mixer() -> None:
    with pytest.raises(ValueError, match="a hyena mixer alone has"):
        with_parameters(ModelConfig(d_model=32, num_layers=1, mixer="hyena"), 20_000)


def test_a_mixer_that_cannot_have_the_width() -> None:
    with pytest.raises(ValueError, match="d_model must be a multiple of 8 for h3, got 36"):
        variant({"d_model": 36, "num_layers": 1, "num_heads": 2}, {"mixer": "h3"})


def test_ablations_are_the_papers() -> None:
    """Their sizes: no gate leaves the Transformer's allocation, a smaller head the width."""
    base = {"d_model": 64, "num_layers": 1, "num_heads": 2}
    configs = {name: variant(base, changes) for name, changes in ablations(2).items()}
    assert (configs["- swish gate"].value_size, configs["- swish gate"].ffn_size) == (32, 256)
    assert configs["- GroupNorm"].head_norm == "none"
    assert configs["- gamma decay"].decay == "none"
    assert configs["- multi-scale decay"].decay == (127 / 128, 127 / 128)
    small = configs["reduce head dimension"]
    assert (small.num_heads, small.key_size, small.value_size) == (8, 8, 16)


def test_contexts_make_equal_steps() -> None:
    for budget in CONTEXT.values():
        assert all(budget.tokens_per_step % context == 0 for context in budget.contexts)
        assert budget.scored <= budget.contexts[0]
