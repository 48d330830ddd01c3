"""A Transformer of a RetNet's size behind `transformers`' own generation: the rival of a server.

Its continuous batching takes the load that the server gets. Contexts are another matter: reading
131,072 tokens to have 16 users with 8,192 each takes a CPU minutes, so there `generate` goes on
from a cache of random numbers that has that size, which costs the same.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from clients import Answer, Ask, Window
from decoders import llama_config

from retnet.bench import Row
from retnet.config import ModelConfig
from retnet.measure import peak_rise_bytes

if TYPE_CHECKING:
    from transformers import GenerationConfig, LlamaForCausalLM

GENERATE, CONTINUOUS = "transformers, generate", "transformers, continuous"
_PAGE = 256


def llama(config: ModelConfig, dtype: torch.dtype) -> "LlamaForCausalLM":
    """As many parameters as the RetNet has, at random."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(config)).to(dtype).eval()


def _greedy(num_tokens: int, eos: int | None = None) -> "GenerationConfig":
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=num_tokens, do_sample=False, pad_token_id=0, eos_token_id=eos
    )


def load_figures(
    model: "LlamaForCausalLM", num_clients: int, asks: Iterator[Ask], seconds: float, batch: int
) -> Row:
    """The load of so many clients, each of which asks again when it has its answer.

    batch: the most tokens of prompts in a step.
    """
    with _manager(model, num_clients, batch) as manager:
        run = _Run(manager, asks)
        for number in range(num_clients):
            run.ask(number)
        while sum(bool(answer.token_s) for answer in run.answers) < num_clients:
            run.take()
        start_s = time.perf_counter()
        while time.perf_counter() < start_s + seconds:
            run.take()
        window = Window(start_s, time.perf_counter(), client_cpu_s=None)
    return window.figures(run.answers)


@contextmanager
def _manager(model: "LlamaForCausalLM", num_clients: int, batch: int) -> Iterator[Any]:
    from transformers import ContinuousBatchingConfig

    pages = 2 * num_clients + 2  # a request of this load has less than two
    settings: ContinuousBatchingConfig = ContinuousBatchingConfig(
        num_blocks=pages, page_size=_PAGE, max_batch_tokens=batch + num_clients
    )
    manager = model.init_continuous_batching(_greedy(_PAGE, eos=-1), settings)
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(block=True, hard_stop=True)


class _Run:
    """Requests on their way in a manager of continuous batching."""

    def __init__(self, manager: Any, asks: Iterator[Ask]) -> None:
        self._manager, self._asks = manager, asks
        self._open: dict[str, tuple[int, Answer]] = {}
        self.answers: list[Answer] = []

    def ask(self, number: int) -> None:
        """A client's next request."""
        ask, answer = next(self._asks), Answer(time.perf_counter())
        name = f"{number}-{len(self.answers)}"
        self.answers.append(answer)
        self._open[name] = (number, answer)
        self._manager.add_request(
            list(ask.prompt), name, max_new_tokens=ask.max_tokens, streaming=True
        )

    def take(self) -> None:
        """What has come, if anything."""
        result = self._manager.get_result(timeout=1)
        if result is None:
            if not self._manager.is_running():
                raise RuntimeError("continuous batching has stopped")
            return
        if result.error:
            raise RuntimeError(result.error)
        number, answer = self._open[result.request_id]
        num_new = len(result.generated_tokens) - len(answer.token_s)
        answer.token_s += [time.perf_counter()] * num_new
        if result.is_finished():
            del self._open[result.request_id]
            self.ask(number)


def context_figures(
    model: "LlamaForCausalLM", batch_size: int, context: int, num_tokens: int
) -> Row:
    """`generate` after a context that each of some texts has: tokens/s, without a first token."""
    cache = random_cache(model, batch_size, context)
    prompt = torch.zeros(batch_size, context + 1, dtype=torch.int64)
    write(model, prompt, cache, 2)  # warms up, and has the cache hold one token more
    start_s = time.perf_counter()
    write(model, torch.zeros(batch_size, context + 3, dtype=torch.int64), cache, num_tokens)
    seconds = time.perf_counter() - start_s
    return {
        "tokens_per_s": batch_size * num_tokens / seconds,
        "gap_ms": 1e3 * seconds / num_tokens,
        "seconds": seconds,
    }


def random_cache(model: "LlamaForCausalLM", batch_size: int, context: int) -> Any:
    """The cache that its users get, as after so many tokens."""
    from transformers import DynamicCache

    config = model.config
    cache = DynamicCache(config=config)
    size = config.hidden_size // config.num_attention_heads
    shape = (batch_size, config.num_key_value_heads, context, size)
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(shape[2:]).to(model.dtype).expand(shape) for _ in range(2))
        cache.update(keys.contiguous(), values.contiguous(), layer)
    return cache


def write(model: "LlamaForCausalLM", prompt: torch.Tensor, cache: Any, num_tokens: int) -> None:
    """So many tokens after the prompt, of which the cache holds all but the last."""
    from retnet.hf.inputs import CACHE_NAME

    held = cache.get_seq_length()
    if held != prompt.shape[1] - 1:
        raise RuntimeError(f"the cache holds {held} tokens, not {prompt.shape[1] - 1}")
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=_greedy(num_tokens),
        **{CACHE_NAME: cache},
    )


def first_token_s(model: "LlamaForCausalLM", num_tokens: int) -> float:
    """How long one prompt takes until its first token."""
    prompt = torch.randint(256, model.config.vocab_size, (1, num_tokens))
    start_s = time.perf_counter()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=_greedy(1))
    return time.perf_counter() - start_s


def memory_figures(config: ModelConfig, context: int) -> Row:
    """How far this process rises above its model while it writes after a context."""
    model = llama(config, torch.bfloat16)
    write(model, torch.zeros(1, 9, dtype=torch.int64), random_cache(model, 1, 8), 2)
    rise = peak_rise_bytes(partial(_write_after, model, context))
    per_token = 2 * config.num_layers * config.d_model * 2
    return {"rise_mb": rise / 1e6, "state_mb": per_token * context / 1e6}


def _write_after(model: "LlamaForCausalLM", context: int) -> None:
    prompt = torch.zeros(1, context + 1, dtype=torch.int64)
    write(model, prompt, random_cache(model, 1, context), 4)
