"""RetNet in Hugging Face Transformers: importing this registers it with the Auto classes.

An adapter over `retnet.model`: nothing of the architecture is written again, and the directory that
`save_pretrained` writes is the one that `retnet.load_checkpoint` reads, and the other way round.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from retnet.hf.cache import RetNetCache, RetNetCacheLayer
from retnet.hf.configuration import RetNetConfig
from retnet.hf.modeling import (
    RetNetForCausalLM,
    RetNetForSequenceClassification,
    RetNetModel,
    RetNetPreTrainedModel,
)

__all__ = [
    "RetNetCache",
    "RetNetCacheLayer",
    "RetNetConfig",
    "RetNetForCausalLM",
    "RetNetForSequenceClassification",
    "RetNetModel",
    "RetNetPreTrainedModel",
]

AutoConfig.register(RetNetConfig.model_type, RetNetConfig)
AutoModel.register(RetNetConfig, RetNetModel)
AutoModelForCausalLM.register(RetNetConfig, RetNetForCausalLM)
AutoModelForSequenceClassification.register(RetNetConfig, RetNetForSequenceClassification)
