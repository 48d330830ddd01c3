"""The rival in figure 6 computes what its model does."""

import pytest
import torch

from retnet.config import ModelConfig
from retnet.generation import step
from retnet.model import RetNet
from retnet.reproduce.attention_decoder import AttentionDecoder


@pytest.mark.parametrize("feed_forward", ["gelu", "swiglu"])
def test_it_is_the_model(feed_forward: str) -> None:
    """Token by token, in several rows, as `retnet.step`."""
    config = ModelConfig(
        mixer="attention",
        vocab_size=31,
        d_model=32,
        num_layers=2,
        num_heads=2,
        feed_forward=feed_forward,  # type: ignore[arg-type]
    )
    model = RetNet(config, generator=torch.Generator().manual_seed(0)).eval().double()
    decoder = AttentionDecoder(model)
    cache, state = decoder.new_cache(3, 9), None
    for token in torch.randint(31, (9, 3), generator=torch.Generator().manual_seed(1)):
        with torch.inference_mode():
            expected, state = step(model, token, state)
        torch.testing.assert_close(decoder.step_(token, cache), expected, rtol=0, atol=1e-12)
    assert cache.num_bytes == 2 * 2 * 3 * 9 * 32 * 8


def test_another_mixer() -> None:
    model = RetNet(ModelConfig(d_model=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="the mixer must be 'attention', got 'retention'"):
        AttentionDecoder(model)
