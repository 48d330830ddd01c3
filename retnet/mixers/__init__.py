"""What retention is compared with: a token mixer each, for the same block, loop and evaluation."""

from collections.abc import Callable

from torch import nn

from retnet.config import ModelConfig
from retnet.layers import MultiScaleRetention
from retnet.mixers.attention import SoftmaxAttention
from retnet.mixers.base import Mixer
from retnet.mixers.h3 import H3
from retnet.mixers.hyena import Hyena
from retnet.mixers.linear import LinearAttention
from retnet.mixers.rwkv import RwkvTimeMixing

__all__ = [
    "H3",
    "Hyena",
    "LinearAttention",
    "Mixer",
    "RwkvTimeMixing",
    "SoftmaxAttention",
    "make_mixer",
]


def make_mixer(config: ModelConfig, layer: int) -> nn.Module:
    """The configured mixer of a layer, 0 for the first."""
    if config.mixer == "retention":
        return MultiScaleRetention(config)
    if config.mixer == "rwkv":
        return RwkvTimeMixing(config, layer)
    kinds: dict[str, Callable[[ModelConfig], Mixer]] = {
        "attention": SoftmaxAttention,
        "linear": LinearAttention,
        "h3": H3,
        "hyena": Hyena,
    }
    return kinds[config.mixer](config)
