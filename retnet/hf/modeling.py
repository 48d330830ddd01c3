"""RetNet's classes for Transformers: a backbone of `retnet.model`, and a head.

No `from __future__ import annotations` here: Transformers reads the annotations themselves.
"""

from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.utils.generic import can_return_tuple

from retnet.hf.cache import RetNetCache
from retnet.hf.configuration import RetNetConfig
from retnet.hf.inputs import (
    CACHE_NAME,
    as_cache,
    check_shapes,
    past_state,
    read_padding,
    read_segments,
)
from retnet.hf.weights import draw_missing_, require_whole
from retnet.included import INCLUDED_MODEL
from retnet.model import RetNet, RetNetBackbone
from retnet.ops import retention_chunkwise, retention_recurrent
from retnet.position import Retention


class _Features(NamedTuple):
    """What the backbone made of a call.

    features: [B, T, D]
    cache: the cache that goes on from here, or None.
    hidden_states: L + 1 tensors [B, T, D], what each block was given and the features, or None.
    """

    features: Tensor
    cache: RetNetCache | None
    hidden_states: tuple[Tensor, ...] | None

    @property
    def named_cache(self) -> dict[str, Any]:
        """The cache by the name that it has in Transformers' outputs."""
        return {CACHE_NAME: self.cache}


class RetNetPreTrainedModel(PreTrainedModel):
    """What RetNet's classes share: the backbone, and how a call of Transformers becomes one of its.

    Their arguments, where a class has them:

    input_ids: [B, T] int64, or inputs_embeds [B, T, D] instead.
    attention_mask: [B, T] or [B, columns read before + T], 1 for tokens and 0 for padding: on the
        left, or on the right where no cache is kept.
    position_ids: [B, T] or [1, T]; where they begin again at 0, another document does.
    seq_idx: [B, T], the number of the document that each token of a packed row belongs to; or
        cu_seq_lens_q, [documents + 1], where those of a single row begin and end. The first
        document of a call goes on from the cache.
    past_key_values: a `RetNetCache`; changed by the call, as caches of Transformers are. Under the
        name `cache`, too, which it has in Transformers 5.24 and newer.
    use_cache: whether to hand out a cache. By default where one is passed; else as the
        configuration says, but not in training, nor with padding on the right, whose state would
        be of no use.
    output_hidden_states: whether to return what each block was given, and the features.
    """

    config_class = RetNetConfig
    config: RetNetConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _is_stateful = True  # refuses assisted decoding, which would have to take tokens back
    _no_split_modules = ["RetNetBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config)
        self.backbone = RetNetBackbone(config.to_model_config())

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        assert isinstance(value, nn.Embedding)
        self.backbone.embed_tokens = value

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        """As in Transformers, but weights that are not a whole backbone's are a ValueError.

        Not in `from_pretrained`: of a folder of adapters it reports on them, not on their base.
        """
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        require_whole(model, loading_info.missing_keys, loading_info.unexpected_keys)
        return loading_info

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights that were not loaded, by the core's rule, which goes by names."""
        names = {each: name for name, each in self.named_modules()}
        name = names.get(module, "embed_tokens")  # new embeddings are not in the model yet
        if name.split(".")[0] in ("backbone", "embed_tokens", "lm_head", "score"):
            draw_missing_(name, module)
        else:
            super()._init_weights(module)  # of a subclass, whose names mean nothing here

    def _features(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        seq_idx: Tensor | None,
        cu_seq_lens_q: Tensor | None,
        cache: RetNetCache | None,
        use_cache: bool | None,
        output_hidden_states: bool | None,
    ) -> _Features:
        x = self._embedded(input_ids, inputs_embeds)
        num_columns = 0 if cache is None else cache.get_seq_length()
        check_shapes(x, attention_mask, position_ids, num_columns)
        padding = read_padding(attention_mask, x.shape[1])
        state = past_state(cache, padding, x.shape[0], self.backbone.config)
        segments = read_segments(
            x.shape[1],
            seq_idx=seq_idx,
            cu_seq_lens=cu_seq_lens_q,
            position_ids=position_ids,
            padding=padding,
            state=state,
        )
        if use_cache is None:
            is_usual = self.config.use_cache and not self.training and not padding.is_right
            use_cache = cache is not None or is_usual
        if padding.is_right and use_cache:
            raise ValueError(
                "attention_mask must pad on the left where a cache is kept, got padding on the "
                "right, which the state would take for the past; set padding_side='left' on the "
                "tokenizer, or pass use_cache=False"
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        collected: list[Tensor] | None = [] if output_hidden_states else None
        features, state = self.backbone(
            x,
            state,
            retain=self._form(x.shape[1]),
            mask=padding.mask,
            segment_ids=None if segments is None else segments.expand(x.shape[:2]),
            block_inputs=collected,
        )
        if use_cache:
            cache = RetNetCache(self.config) if cache is None else cache
            cache.set_state(state, num_columns + x.shape[1])
        return _Features(
            features,
            cache if use_cache else None,
            None if collected is None else (*collected, features),
        )

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is not None and inputs_embeds is None:
            return self.backbone.embed(input_ids)
        if inputs_embeds is not None and input_ids is None:
            return inputs_embeds
        raise ValueError("pass one of input_ids and inputs_embeds, got both or neither")

    def _form(self, num_tokens: int) -> Retention:
        """The form of retention for so many tokens."""
        if num_tokens == 1:
            return retention_recurrent
        return partial(retention_chunkwise, chunk_size=self.config.chunk_size)


class RetNetModel(RetNetPreTrainedModel):
    """RetNet without a head; see `RetNetPreTrainedModel` for the arguments."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RetNetCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cache: RetNetCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The features [B, T, D] after the final norm, as `last_hidden_state`."""
        read = self._features(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            seq_idx=seq_idx,
            cu_seq_lens_q=cu_seq_lens_q,
            cache=as_cache(past_key_values, cache),
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        return BaseModelOutputWithPast(
            last_hidden_state=read.features,
            hidden_states=read.hidden_states,
            **read.named_cache,
        )


class RetNetForCausalLM(RetNetPreTrainedModel, GenerationMixin):
    """RetNet as a language model; see `RetNetPreTrainedModel` for the arguments."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As in Transformers; without a name, the model that comes with the package."""
        if pretrained_model_name_or_path is None and kwargs.get("state_dict") is None:
            pretrained_model_name_or_path = INCLUDED_MODEL
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_retnet(cls, model: RetNet) -> Self:
        """The same model for Transformers. The two share their weights.

        It knows of no tokenizer: where `generate` should end, say so by eos_token_id.
        """
        with torch.device("meta"):
            adapter = cls(RetNetConfig.from_model_config(model.config))
        adapter.backbone = model.backbone
        if model.lm_head is None:
            adapter.lm_head.weight = model.backbone.embed_tokens.weight
        else:
            adapter.lm_head = model.lm_head
        return adapter.train(model.training)

    def to_retnet(self) -> RetNet:
        """The same model as `retnet.generate` and the rest of this project take it. The two share
        their weights.
        """
        tied = self.lm_head.weight is self.backbone.embed_tokens.weight
        with torch.device("meta"):
            model = RetNet(replace(self.config.to_model_config(), tie_embeddings=tied))
        model.backbone = self.backbone
        if model.lm_head is not None:
            model.lm_head = self.lm_head
        return model.train(self.training)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RetNetCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cache: RetNetCache | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The scores of each next token, `logits` [B, T, vocab_size], and the `loss` given labels.

        labels: [B, T], the ids themselves (they are shifted here), -100 for those left out.
        logits_to_keep: only the scores after the last so many tokens, or after those of these
            indices; 0 for all.
        """
        read = self._features(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            seq_idx=seq_idx,
            cu_seq_lens_q=cu_seq_lens_q,
            cache=as_cache(past_key_values, cache),
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(read.features[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=read.hidden_states,
            **read.named_cache,
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> bool:
        """Give `generate` a cache of ours, where it would make one of keys and values."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation must be left out for a RetNet, got "
                f"{generation_config.cache_implementation!r}: its state has one size and one kind"
            )
        if model_kwargs.get(CACHE_NAME) is None and generation_config.use_cache:
            model_kwargs[CACHE_NAME] = RetNetCache(self.config)
        return False


class RetNetForSequenceClassification(RetNetPreTrainedModel):
    """RetNet with a linear score of each row's last token; see `RetNetPreTrainedModel`."""

    accepts_loss_kwargs = False  # a mean over rows: Trainer has to divide it by its accumulation

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.d_model, len(config.id2label or ()), bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: RetNetCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cache: RetNetCache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """`logits` [B, num_labels], and the `loss` given labels. A row is one document.

        The last token is that of attention_mask; without one, of input_ids other than padding;
        else the last column.
        labels: [B] class numbers, [B] or [B, num_labels] numbers for a regression, [B, num_labels]
            for several labels at once (`config.problem_type`).
        """
        if seq_idx is not None or cu_seq_lens_q is not None:
            raise ValueError("a classifier reads one document a row, got a packed row; pad instead")
        read = self._features(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            seq_idx=None,
            cu_seq_lens_q=None,
            cache=as_cache(past_key_values, cache),
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        last = self._last_tokens(read.features, input_ids, attention_mask)
        rows = torch.arange(last.shape[0], device=last.device)
        logits = self.score(read.features[rows, last])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=read.hidden_states,
            **read.named_cache,
        )

    def _last_tokens(
        self, features: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor:
        """The column of each row's last token, [B] int64."""
        batch, length = features.shape[:2]
        columns = torch.arange(length, device=features.device)
        if attention_mask is not None:
            is_token = attention_mask[:, -length:].bool()
        elif input_ids is not None and self.config.pad_token_id is not None:
            is_token = input_ids != self.config.pad_token_id
        else:
            return columns[-1:].expand(batch)
        return (columns * is_token).argmax(dim=1)
