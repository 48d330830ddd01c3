"""`ModelConfig` as a configuration of Transformers."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self

from transformers import PreTrainedConfig

from retnet.checkpoint import MODEL_TYPE, refuse_other_model
from retnet.config import ModelConfig

_MODEL_FIELDS = tuple(field.name for field in fields(ModelConfig))


class RetNetConfig(PreTrainedConfig):
    """What a RetNet is made of, for Transformers.

    The first fields are those of `retnet.ModelConfig`, by the same names and with the same defaults
    and meanings; Transformers' names for them (`hidden_size`, `num_hidden_layers`, ...) work as
    well. ValueError where they don't fit together.

    Attributes:
        chunk_size: tokens of a chunk of the chunkwise form: a matter of speed, not of results.
        use_cache: whether a call in evaluation mode hands out its state where it isn't said.
        max_position_embeddings: what tools that ask for a limit are told; a RetNet has none.
        bos_token_id, eos_token_id, pad_token_id: the tokenizer's.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "head_dim": "key_size",
        "intermediate_size": "ffn_size",
        "tie_word_embeddings": "tie_embeddings",
    }

    mixer: str = "retention"
    vocab_size: int = 259
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    key_size: int = 0
    value_size: int = 0
    ffn_size: int = 0
    decay: str | list[float] | tuple[float, ...] = "linspace"
    score_norm: str = "none"
    gate: bool = True
    head_norm: str = "layernorm"
    head_norm_affine: bool = False
    head_norm_eps: float = 1e-5
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    feed_forward: str = "gelu"
    ffn_norm: bool = False
    embedding_norm: bool = False
    bias: bool = False
    rotary_pairing: str = "interleaved"
    rotary_frequencies: str = "torchscale"
    tie_embeddings: bool = True
    dropout: float = 0.0

    chunk_size: int = 64
    use_cache: bool = True
    max_position_embeddings: int = 2**20
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # Checks the fields, and fills in the sizes that were left open.
        for name, value in self.to_model_config().to_dict().items():
            setattr(self, name, value)

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> Self:
        """The configuration of this model, for Transformers."""
        return cls(**config.to_dict())

    def to_model_config(self) -> ModelConfig:
        """The model's own part, checked: ValueError where the fields don't fit together."""
        config = ModelConfig.from_dict({name: getattr(self, name) for name in _MODEL_FIELDS})
        config.require_retention("Hugging Face's interface")
        return config

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """As in Transformers; the configuration of another kind of model is a ValueError."""
        refuse_other_model({"model_type": MODEL_TYPE, **config_dict})
        return super().from_dict(dict(config_dict), **kwargs)
