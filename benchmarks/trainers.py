"""The contenders of bench_training.py: a RetNet, torchscale's, and Hugging Face's Llama.

All have the same number of layers, width and vocabulary, a tied head, and as many parameters as
that leaves: 12 D^2 a layer. All train in one way: this project's loss, which never holds all
logits, gradients clipped at norm 1, torch's fused AdamW. bf16 is autocast over fp32 weights.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from contenders import stand_in_for_timm, torchscale_is_installed
from decoders import llama_config
from torch import Tensor, nn

from retnet.config import ModelConfig
from retnet.loss import linear_next_token_loss
from retnet.model import RetNet

OURS, TORCHSCALE, LLAMA = "ours", "torchscale", "llama"
DTYPES = (torch.bfloat16, torch.float32)
TORCHSCALE_CHUNK = 512


@dataclass(frozen=True)
class Batch:
    """tokens, targets: [B, T] int64."""

    tokens: Tensor
    targets: Tensor

    @property
    def num_tokens(self) -> int:
        """All rows' together."""
        return self.tokens.numel()

    @classmethod
    def draw(cls, vocab_size: int, batch_size: int, num_tokens: int) -> "Batch":
        """Random ones: no step's time depends on them."""
        tokens = torch.randint(vocab_size, (batch_size, num_tokens + 1))
        return cls(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class Trainer:
    """A model that can be trained.

    features: [B, T] tokens -> [B, T, D], what the model makes of them.
    head: [vocab_size, D].
    """

    def __init__(
        self, model: nn.Module, features: Callable[[Tensor], Tensor], head: nn.Parameter
    ) -> None:
        self._model = model.train()
        self._features, self._head = features, head
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.num_parameters = sum(weight.numel() for weight in model.parameters())

    @property
    def flops_per_token(self) -> int:
        """6 N, with N the numbers in matrices: what the products with weights take, both ways."""
        return 6 * sum(weight.numel() for weight in self._model.parameters() if weight.dim() > 1)

    def step(self, batch: Batch, dtype: torch.dtype) -> None:
        """Forward, loss, backward, clipping, AdamW."""
        with _products_in(dtype):
            features = self._features(batch.tokens)
            loss = linear_next_token_loss(features, self._head, batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _products_in(dtype: torch.dtype) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def available() -> list[str]:
    """The names of the contenders that can run here."""
    return [name for name in CONTENDERS if name != TORCHSCALE or torchscale_is_installed()]


def build(name: str, config: ModelConfig) -> Trainer:
    """The contender of that name, made to the size of a RetNet."""
    return CONTENDERS[name](config)


def _ours(config: ModelConfig) -> Trainer:
    model = RetNet(config)
    return Trainer(model, lambda tokens: model.features(tokens)[0], model.head_weight)


def _torchscale(config: ModelConfig) -> Trainer:
    """Its decoder in the chunkwise form. Its feed forward has three matrices, so each is 4/3 D."""
    sizes = {
        "vocab_size": config.vocab_size,
        "decoder_embed_dim": config.d_model,
        "decoder_value_embed_dim": 2 * config.d_model,
        "decoder_retention_heads": config.num_heads,
        "decoder_ffn_embed_dim": round(4 * config.d_model / 3),
        "decoder_layers": config.num_layers,
        "share_decoder_input_output_embed": True,
        "chunkwise_recurrent": True,
        "recurrent_chunk_size": TORCHSCALE_CHUNK,
    }
    stand_in_for_timm()
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    embedding = nn.Embedding(config.vocab_size, config.d_model)
    nn.init.normal_(embedding.weight, std=config.d_model**-0.5)
    model = RetNetDecoder(RetNetConfig(**sizes), embedding)
    return Trainer(
        model, lambda tokens: model(tokens, features_only=True)[0], model.output_projection.weight
    )


def _llama(config: ModelConfig) -> Trainer:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama_config(config))
    return Trainer(
        model,
        lambda tokens: model.model(tokens, use_cache=False).last_hidden_state,
        model.lm_head.weight,
    )


CONTENDERS: dict[str, Callable[[ModelConfig], Trainer]] = {
    OURS: _ours,
    TORCHSCALE: _torchscale,
    LLAMA: _llama,
}
