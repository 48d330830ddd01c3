"""Our state as a cache of Transformers: of constant size, whatever was read."""

from typing import Any, NoReturn, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from retnet.hf.configuration import RetNetConfig
from retnet.model import RetNetState

_NOT_CROPPABLE = (
    "a RetNetCache can't be cropped: its state is one sum over all tokens, and none can be taken "
    "out again. Keep a copy from before (copy.deepcopy) and go on from that; assisted decoding, "
    "which crops, is not possible"
)


class RetNetCacheLayer(CacheLayerMixin):
    """What one layer remembers.

    Attributes:
        state: [B, H, K, V] fp32, or None where nothing has been read; replaced by every call, never
            changed in place.
        position: [B] int64, the tokens that each row has read.
        num_columns: the columns of input ids read, padding included: what `generate` counts.
    """

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.state: Tensor | None = None
        self.position: Tensor | None = None
        self.num_columns = 0
        self.is_initialized = False

    def set(self, state: Tensor, position: Tensor, num_columns: int) -> None:
        """Remember this from now on."""
        self.state, self.position, self.num_columns = state, position, num_columns
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Columns read so far, padding included."""
        return self.num_columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The length and the offset of an attention mask over everything read."""
        return self.num_columns + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """-1: there is no limit. Transformers' older name."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows in this order; one may come more than once."""
        if self.state is not None and self.position is not None:
            # Layers on several devices share the position, which is on the first of them.
            self.state = self.state[beam_idx.to(self.state.device)]
            self.position = self.position[beam_idx.to(self.position.device)]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times, one beside the other."""
        if self.state is not None:
            rows = torch.arange(len(self.state), device=self.state.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def crop(self, *_: int) -> NoReturn:
        """Not possible: ValueError."""
        raise ValueError(_NOT_CROPPABLE)

    def offload(self) -> None:
        """Nothing: a state is small enough to stay."""

    def prefetch(self) -> None:
        """Nothing: a state is small enough to stay."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Not possible: a state is not made of keys and values."""
        raise ValueError("a RetNetCache holds states, not keys and values; RetNet fills it itself")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> NoReturn:
        """Not possible: a state is not made of keys and values."""
        self.lazy_initialization(key_states, value_states)


class RetNetCache(Cache):
    """What a RetNet remembers of the rows of a batch: `past_key_values` of its classes.

    Of constant size: `num_bytes` is the same after one token and after a million.
    """

    layers: list[RetNetCacheLayer]  # type: ignore[assignment]

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(layers=[RetNetCacheLayer() for _ in range(config.num_layers)])

    @classmethod
    def from_state(cls, state: RetNetState, config: RetNetConfig) -> Self:
        """A cache that goes on from a state, such as one that was saved.

        Its rows count as many columns as the longest has read. ValueError for the state of a model
        with another number of layers.
        """
        if len(state.layers) != config.num_layers:
            raise ValueError(
                f"state must have {config.num_layers} layers, got {len(state.layers)}; it belongs "
                "to another model"
            )
        cache = cls(config)
        cache.set_state(state, int(state.position.max()))
        return cache

    @property
    def state(self) -> RetNetState | None:
        """The state as the rest of this project knows it; None where nothing has been read."""
        states = tuple(layer.state for layer in self.layers if layer.state is not None)
        position = self.layers[0].position
        return None if position is None else RetNetState(states, position)

    def set_state(self, state: RetNetState, num_columns: int) -> None:
        """Remember this state, after so many columns, from now on."""
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            layer.set(layer_state, state.position, num_columns)

    @property
    def is_initialized(self) -> bool:
        """Whether anything has been read."""
        return self.state is not None

    @property
    def num_bytes(self) -> int:
        """Bytes that the states take."""
        return 0 if self.state is None else self.state.num_bytes

    def crop(self, *_: int) -> NoReturn:
        """Not possible: ValueError."""
        raise ValueError(_NOT_CROPPABLE)
