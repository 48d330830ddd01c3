"""The contenders of bench_decoding.py: a RetNet in several ways, and two Transformers of its size.

All weights are random, and so is what a cache holds: a token's time does not depend on the numbers.
That is how a context of 32,768 tokens is timed without reading 32,768 tokens first, on all sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer import KeyValueCache, Transformer, TransformerConfig

from retnet import decoding
from retnet.config import ModelConfig
from retnet.decoding import KernelName
from retnet.decoding.native.build import BuildError, library
from retnet.generation import prefill, step
from retnet.measure import dtype_name
from retnet.model import RetNet, RetNetState

if TYPE_CHECKING:
    from transformers import LlamaConfig

OURS, OURS_INT8, OURS_TORCH, OURS_STEP = "ours", "ours int8", "ours, torch", "ours, step"
TRANSFORMER, LLAMA = "transformer, cache in place", "transformers' llama"
ATTENTION_HEAD_SIZE = 64
BF16 = torch.bfloat16


@dataclass
class Session:
    """A decoding under way.

    advance: tokens [B] -> logits [B, vocab_size], and remembers the tokens.
    tokens: [B], the ones to go on from.
    state_bytes: the state or cache that one step reads.
    """

    advance: Callable[[Tensor], Tensor]
    tokens: Tensor
    state_bytes: int

    def decode(self, num_steps: int) -> None:
        """Greedily, each token from the one before it."""
        with torch.inference_mode():
            for _ in range(num_steps):
                self.tokens = self.advance(self.tokens).argmax(dim=-1)


@dataclass(frozen=True)
class Decoder:
    """A model that can be timed.

    begin: (batch size, tokens before, steps to leave room for) -> a session that stands there.
    prefill: tokens [1, T] -> logits [1, vocab_size] of the token after them; None where another
        contender's is the same.
    matrix_bytes: of a weight of a matrix, where that is another than the dtype's.
    """

    name: str
    dtype: torch.dtype
    model: nn.Module
    begin: Callable[[int, int, int], Session]
    prefill: Callable[[Tensor], Tensor] | None = None
    matrix_bytes: int | None = None

    @property
    def title(self) -> str:
        """A name of its own among all contenders."""
        return f"{self.name} {dtype_name(self.dtype)}"

    @property
    def num_parameters(self) -> int:
        """A tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        """What a step reads of the weights: all, and a tied matrix once."""
        total = 0
        for weight in self.model.parameters():
            own = self.matrix_bytes if weight.dim() > 1 else None
            total += weight.numel() * (weight.element_size() if own is None else own)
        return total


PIECE = 256  # tokens of a prompt that a server reads at a time

Make = Callable[[ModelConfig, torch.dtype], Decoder]


def decoders(config: ModelConfig, dtypes: tuple[torch.dtype, ...]) -> list[Decoder]:
    """Every contender that can run here, in every dtype. `missing` tells of those that cannot."""
    native: list[Make] = [partial(_decoder, OURS, "native"), _int8]
    makers: list[Make] = [
        *(native if _why_not_native() is None else []),
        partial(_decoder, OURS_TORCH, "torch"),
        _step,
        _transformer,
        *([_llama] if _transformers_is_installed() else []),
    ]
    pairs = [(make, dtype) for make in makers for dtype in dtypes]
    return [make(config, dtype) for make, dtype in pairs if make is not _int8 or dtype == BF16]


def missing() -> list[str]:
    """A sentence for each contender that is not installed."""
    absent = f"transformers is missing: the rows of {LLAMA} are left out"
    why = _why_not_native()
    return [
        *([] if _transformers_is_installed() else [absent]),
        *([] if why is None else [f"there is no native kernel: {why}"]),
    ]


def _transformers_is_installed() -> bool:
    return find_spec("transformers") is not None


def _why_not_native() -> str | None:
    try:
        library()
    except BuildError as error:
        return str(error)
    return None


def _decoder(
    name: str, kernel: KernelName, config: ModelConfig, dtype: torch.dtype, *, int8: bool = False
) -> Decoder:
    """What a server runs."""
    model = RetNet(config).to(dtype).eval()
    ours = decoding.Decoder(model, kernel=kernel, int8=int8)

    def begin(batch_size: int, num_before: int, room: int) -> Session:
        state, rows = ours.new_state(batch_size), torch.arange(batch_size)
        filled = _state(model, batch_size, num_before)
        for layer, numbers in zip(state.layers, filled.layers, strict=True):
            layer.copy_(numbers)
        state.position.copy_(filled.position)
        return Session(
            lambda tokens: ours.step_(tokens, state, rows),
            _first_tokens(batch_size),
            state.num_bytes,
        )

    def read(tokens: Tensor) -> Tensor:
        state, logits = ours.new_state(1), torch.empty(0)
        for piece in tokens[0].split(PIECE):
            logits = ours.step_(piece, state, torch.tensor([0]), [len(piece)])
        return logits

    return Decoder(name, dtype, model, begin, read, matrix_bytes=1 if int8 else None)


def _int8(config: ModelConfig, dtype: torch.dtype) -> Decoder:
    return _decoder(OURS_INT8, "native", config, dtype, int8=True)


def _step(config: ModelConfig, dtype: torch.dtype) -> Decoder:
    """The library's own loop, which changes nothing in place."""
    model = RetNet(config).to(dtype).eval()

    def begin(batch_size: int, num_before: int, room: int) -> Session:
        state = _state(model, batch_size, num_before)

        def advance(tokens: Tensor) -> Tensor:
            nonlocal state
            logits, state = step(model, tokens, state)
            return logits

        return Session(advance, _first_tokens(batch_size), state.num_bytes)

    return Decoder(OURS_STEP, dtype, model, begin, lambda tokens: prefill(model, tokens)[0])


def _state(model: RetNet, batch_size: int, num_before: int) -> RetNetState:
    """As large as after so many tokens; its numbers come from a few."""
    with torch.no_grad():
        _, few = prefill(model, torch.randint(model.config.vocab_size, (batch_size, 32)))
    return RetNetState(few.layers, torch.full((batch_size,), num_before))


def _transformer(config: ModelConfig, dtype: torch.dtype) -> Decoder:
    sizes = TransformerConfig(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        num_layers=config.num_layers,
        num_heads=_num_attention_heads(config),
    )
    model = Transformer(sizes).to(dtype).eval()

    def begin(batch_size: int, num_before: int, room: int) -> Session:
        cache = KeyValueCache.allocate(sizes, batch_size, num_before + room, dtype)
        for part in (cache.keys, cache.values):
            part.copy_(torch.randn(part.shape[-2:]))
        cache.filled = num_before

        def advance(tokens: Tensor) -> Tensor:
            return model(tokens[:, None], cache)

        return Session(advance, _first_tokens(batch_size), cache.num_bytes)

    def read(tokens: Tensor) -> Tensor:
        return model(tokens, KeyValueCache.allocate(sizes, tokens.shape[0], tokens.shape[1], dtype))

    return Decoder(TRANSFORMER, dtype, model, begin, read)


def _llama(config: ModelConfig, dtype: torch.dtype) -> Decoder:
    """What users of transformers get: its Llama, with a cache that grows by copying itself."""
    from transformers import DynamicCache, LlamaForCausalLM

    sizes, num_heads = llama_config(config), _num_attention_heads(config)
    model = LlamaForCausalLM(sizes).to(dtype).eval()

    def logits(tokens: Tensor, cache: Any) -> Tensor:
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]

    def begin(batch_size: int, num_before: int, room: int) -> Session:
        cache = DynamicCache(config=sizes)
        shape = (batch_size, num_heads, num_before, config.d_model // num_heads)
        for layer in range(config.num_layers):
            keys, values = (torch.randn(shape[2:]).to(dtype).expand(shape) for _ in range(2))
            cache.update(keys.contiguous(), values.contiguous(), layer)
        num_bytes = 2 * config.num_layers * keys.numel() * keys.element_size()
        return Session(
            lambda tokens: logits(tokens[:, None], cache), _first_tokens(batch_size), num_bytes
        )

    def read(tokens: Tensor) -> Tensor:
        return logits(tokens, DynamicCache(config=sizes))

    return Decoder(LLAMA, dtype, model, begin, read)


def llama_config(config: ModelConfig) -> "LlamaConfig":
    """A Llama of as many parameters as the RetNet, with a tied head, attending by torch's sdpa."""
    from transformers import LlamaConfig

    num_heads = _num_attention_heads(config)
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=round(8 * config.d_model / 3),
        num_hidden_layers=config.num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=2**17,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )


def _num_attention_heads(config: ModelConfig) -> int:
    return max(1, config.d_model // ATTENTION_HEAD_SIZE)


def _first_tokens(batch_size: int) -> Tensor:
    return torch.zeros(batch_size, dtype=torch.int64)
