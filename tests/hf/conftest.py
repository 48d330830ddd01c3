"""Small models of the Hugging Face classes, whose tokens vary."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retnet.hf import RetNetConfig, RetNetForCausalLM

MakeModel = Callable[..., RetNetForCausalLM]


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RetNetConfig]:
    """A small configuration with the byte tokenizer's ids, some fields changed."""

    def make(**changes: Any) -> RetNetConfig:
        small: dict[str, Any] = {"d_model": 32, "num_layers": 2, "num_heads": 2}
        small["tie_embeddings"] = False
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return RetNetConfig(**{**small, **ids, **changes})

    return make


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., RetNetConfig]) -> MakeModel:
    """A model in evaluation mode, fp64 so that equal means equal; the same for the same seed.

    Its matrices are enlarged: freshly drawn, it would write one token for ever.
    """

    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = RetNetForCausalLM(make_config(**changes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def model(make_model: MakeModel) -> RetNetForCausalLM:
    """One such model, for those who don't change it."""
    return make_model()


@pytest.fixture
def ids(rng: torch.Generator) -> torch.Tensor:
    """Two rows of 20 tokens."""
    return torch.randint(3, 259, (2, 20), generator=rng)
