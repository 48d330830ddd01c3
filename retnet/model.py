"""The language model and its state."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from retnet.config import ModelConfig
from retnet.layers import RetNetBlock, make_norm
from retnet.mixers import Mixer, make_mixer
from retnet.ops import retention_chunkwise
from retnet.position import Retention, TokenContext, make_context, token_positions


@dataclass(frozen=True)
class RetNetState:
    """All that a RetNet remembers of the tokens it has read: a value, never changed in place.

    layers: L tensors [B, H, K, V], fp32 (fp64 for an fp64 model); with score_norm "paper" one value
        column more; with another mixer what that says, [B, ...].
    position: [B] int64, how many tokens each row has read.
    """

    layers: tuple[Tensor, ...]
    position: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the layers' states take."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    def rows(self, index: Tensor | Sequence[int]) -> "RetNetState":
        """The state of the chosen rows, in that order; a row may come more than once."""
        index = torch.as_tensor(index, device=self.position.device)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        return RetNetState(tuple(layer[index] for layer in self.layers), self.position[index])

    def cleared(self, rows: Tensor) -> "RetNetState":
        """The state with some rows, [B] bool, as if they had read nothing."""
        kept = tuple(layer * ~rows.view(-1, *[1] * (layer.dim() - 1)) for layer in self.layers)
        return RetNetState(kept, self.position * ~rows)

    def detached(self) -> "RetNetState":
        """The state without the graph that made it."""
        return RetNetState(tuple(layer.detach() for layer in self.layers), self.position)

    @staticmethod
    def stack(states: Sequence["RetNetState"]) -> "RetNetState":
        """Several states as one, their rows one after the other."""
        if not states:
            raise ValueError("states must hold at least one state, got none")
        layers = zip(*(state.layers for state in states), strict=True)
        return RetNetState(
            tuple(torch.cat(rows) for rows in layers),
            torch.cat([state.position for state in states]),
        )


class RetNetBackbone(nn.Module):
    """All of a RetNet but its output head: embedding, perhaps a norm, L blocks, a final norm.

    Attributes:
        gradient_checkpointing: whether a block's inner values are computed again for its backward
            pass instead of being kept, in training mode.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Given its weight, it isn't drawn here, for which torch would import half of its compiler.
        weight = torch.empty(config.vocab_size, config.d_model)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, _weight=weight)
        self.embedding_norm = None
        if config.embedding_norm:
            self.embedding_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.layers = nn.ModuleList(
            RetNetBlock(config, make_mixer(config, layer)) for layer in range(config.num_layers)
        )
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.gradient_checkpointing = False

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings [B, T, D] of tokens [B, T] int64; ValueError for ids out of range."""
        try:
            return self.embed_tokens(tokens)
        except IndexError as error:
            raise ValueError(
                f"tokens must be ids in [0, {self.embed_tokens.num_embeddings}), got "
                f"{int(tokens.min())} to {int(tokens.max())}; is the tokenizer another model's?"
            ) from error

    def forward(
        self,
        x: Tensor,
        state: RetNetState | None = None,
        *,
        retain: Retention = retention_chunkwise,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        block_inputs: list[Tensor] | None = None,
    ) -> tuple[Tensor, RetNetState]:
        """Embeddings x [B, T, D] to features [B, T, D], and the state after; see
        `RetNet.features`.

        block_inputs: a list that is given what each block reads, [B, T, D].
        """
        first = None if state is None else state.position
        positions, after = token_positions(x[..., 0], first, mask, segment_ids)
        context = make_context(
            self.config, positions, mask=mask, segment_ids=segment_ids, retain=retain, dtype=x.dtype
        )
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        states: list[Tensor] = []
        for layer, before in zip(self.layers, self._layer_states(state, x.shape[0]), strict=True):
            if block_inputs is not None:
                block_inputs.append(x)
            x, layer_state = self._run(layer, x, context, before)
            states.append(layer_state)
        return self.norm(x), RetNetState(tuple(states), after)

    def _run(
        self, layer: nn.Module, x: Tensor, context: TokenContext, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x, context, state, use_reentrant=False)
        return layer(x, context, state)

    def _layer_states(self, state: RetNetState | None, batch: int) -> Sequence[Tensor | None]:
        if state is None:
            return [None] * self.config.num_layers
        # Not len(position): an exporter's batch may be a symbol, which len would fix to a number.
        rows = state.position.shape[0]
        if len(state.layers) != self.config.num_layers or rows != batch:
            raise ValueError(
                f"state must have {self.config.num_layers} layers and {batch} rows, "
                f"got {len(state.layers)} and {rows}; it belongs to another model or batch"
            )
        return state.layers


class RetNet(nn.Module):
    """The Retentive Network: a backbone and an output head.

    Args:
        config: its shape and rules.
        generator: where the initial weights are drawn from; None for torch's default generator.

    Built under `with torch.device("meta")` it takes no memory and has no weights yet.
    """

    def __init__(self, config: ModelConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # On the meta device torch's own initialisation costs nothing.
        with torch.device("meta"):
            self.backbone = RetNetBackbone(config)
            self.lm_head = None
            if not config.tie_embeddings:
                self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.to_empty(device=device)
        if device.type != "meta":
            initialise_(self, generator)

    def features(
        self,
        tokens: Tensor,
        state: RetNetState | None = None,
        *,
        retain: Retention = retention_chunkwise,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, RetNetState]:
        """What the model makes of the tokens, before the output head.

        Args:
            tokens: [B, T] int64, ids below vocab_size.
            state: what it has read before, or None for nothing.
            retain: the form of retention: `retention_chunkwise`, `retention_parallel`,
                `retention_recurrent`, or one of them with options bound by `functools.partial`.
            mask: [B, T] bool, True for tokens and False for padding. Where the state is used
                afterwards, padding may only stand on the left of rows that have read nothing yet:
                it would age a state.
            segment_ids: [B, T] integers; documents packed in a row see nothing of each other, and
                the last one's state is handed on.

        Returns:
            [B, T, D] after the final norm, and the state after the last token.
        """
        _check_tokens(tokens, mask, segment_ids)
        x = self.backbone.embed(tokens)
        return self.backbone(x, state, retain=retain, mask=mask, segment_ids=segment_ids)

    @property
    def head_weight(self) -> Tensor:
        """The output head's matrix [vocab_size, D], perhaps the embedding's."""
        return (self.backbone.embed_tokens if self.lm_head is None else self.lm_head).weight

    def logits(self, features: Tensor) -> Tensor:
        """The scores of each next token: [..., D] -> [..., vocab_size]."""
        if self.lm_head is None:
            return F.linear(features, self.head_weight)
        return self.lm_head(features)

    def forward(
        self,
        tokens: Tensor,
        state: RetNetState | None = None,
        *,
        retain: Retention = retention_chunkwise,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, RetNetState]:
        """The scores of each next token [B, T, vocab_size], and the state after; see `features`."""
        features, state = self.features(
            tokens, state, retain=retain, mask=mask, segment_ids=segment_ids
        )
        return self.logits(features), state


def initialise_(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the initial weights of a RetNet or of a part of one; see `initialise_parameter_`."""
    for name, parameter in model.named_parameters():
        initialise_parameter_(name, parameter, generator)
    for module in model.modules():
        if isinstance(module, Mixer):
            module.initialise_(generator)


@torch.no_grad()
def initialise_parameter_(
    name: str, parameter: Tensor, generator: torch.Generator | None = None
) -> None:
    """Draw one initial weight by its name in the model, as the paper's authors do in their first
    release (the paper gives no constants).

    | embeddings, output head            | normal, standard deviation D^-0.5 |
    | query, key, value, gate, and what  | Xavier uniform, gain 2^-2.5       |
    |   other mixers have in their place |                                   |
    | retention output                   | Xavier uniform, gain 1            |
    | feed forward                       | uniform, +- fan_in^-0.5           |
    | norms: weight, bias; other biases  | 1, 0; 0                           |
    """
    kind = name.split(".")[-2]
    if parameter.dim() < 2:
        parameter.fill_(float(kind.endswith("norm") and name.endswith("weight")))
    elif kind in ("up_proj", "gate_proj", "down_proj"):
        bound = parameter.shape[1] ** -0.5
        parameter.uniform_(-bound, bound, generator=generator)
    elif kind in ("q_proj", "k_proj", "v_proj", "g_proj", "r_proj", "in_proj", "out_proj"):
        gain = 1.0 if kind == "out_proj" else 2**-2.5
        nn.init.xavier_uniform_(parameter, gain, generator=generator)
    else:
        parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)


def _check_tokens(tokens: Tensor, mask: Tensor | None, segment_ids: Tensor | None) -> None:
    if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens must be integers [B, T], got {tokens.dtype} {list(tokens.shape)}")
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool [B, T] = {list(tokens.shape)}, True for tokens, "
            f"got {mask.dtype} {list(mask.shape)}"
        )
    if segment_ids is not None and (
        segment_ids.shape != tokens.shape or segment_ids.dtype.is_floating_point
    ):
        raise ValueError(
            f"segment_ids must be integers [B, T] = {list(tokens.shape)}, "
            f"got {segment_ids.dtype} {list(segment_ids.shape)}"
        )
