"""Linear Transformer: attention whose softmax is replaced by a product of features."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import ModelConfig
from retnet.mixers.base import Mixer
from retnet.position import TokenContext


class LinearAttention(Mixer):
    """sum_m phi(q_n) . phi(k_m) v_m / sum_m phi(q_n) . phi(k_m), phi(x) = elu(x) + 1.

    (Katharopoulos et al. 2020, arXiv 2006.16236, Eq. 5 and 7.) The sums are retention without decay
    or rotation, with a value column of ones for the divisor; so is the state, [B, H, K, V + 1].

    Without positions it could not tell an order. The original adds sines and cosines of them to the
    embeddings; here they are added to what queries and keys are made of, as in Shortformer (Press
    et al. 2020, arXiv 2012.15832), since the block has none.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        keys, values = config.num_heads * config.key_size, config.num_heads * config.value_size
        self.q_proj = nn.Linear(config.d_model, keys, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, keys, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, values, bias=config.bias)
        self.out_proj = nn.Linear(values, config.d_model, bias=config.bias)

    def forward(
        self, x: Tensor, context: TokenContext, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Mixer`."""
        heads, placed = (self.config.num_heads, -1), x + _places(context, x)
        q, k = (
            F.elu(project(placed)).unflatten(-1, heads) + 1
            for project in (self.q_proj, self.k_proj)
        )
        v = F.pad(self.v_proj(x).unflatten(-1, heads), (0, 1), value=1.0)
        if context.mask is not None:
            k, v = (y.masked_fill(~context.mask[..., None, None], 0) for y in (k, v))
        no_decay = torch.zeros(self.config.num_heads, dtype=torch.float64, device="cpu")
        out, state = context.retain(q, k, v, no_decay, state, segment_ids=context.segment_ids)
        # Padding has a sum of nothing.
        divisor = out[..., -1:].clamp(min=torch.finfo(out.dtype).tiny)
        return self.out_proj((out[..., :-1] / divisor).flatten(2)), state


def _places(context: TokenContext, x: Tensor) -> Tensor:
    """Cosines and sines of the positions of x [B, T, D], again and again over its width."""
    waves = context.query_rotation.flatten(2)
    times = -(-x.shape[2] // waves.shape[2])
    return waves.repeat(1, 1, times)[..., : x.shape[2]].to(x.dtype)
