"""A Transformer trained as `retnet train` trains a RetNet: the same tokens, optimizer and schedule.

    python benchmarks/train_transformer.py --data data/wikitext-2 --steps 2636

The model is Hugging Face's Llama with `scaled_dot_product_attention`. Held-out text is read in
windows of its own context, which it can't be used beyond, with at least half a window before every
token but those of the first. The last line of the output is the result as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from math import log

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from retnet.data.batches import Windows
from retnet.data.tokens import TokenData, TokenDocument, load_tokens
from retnet.loss import IGNORED, next_token_loss
from retnet.score import autocast
from retnet.train.config import OptimizerConfig
from retnet.train.optimizer import make_optimizer, set_learning_rate_
from retnet.train.precision import choose_precision
from retnet.train.schedule import learning_rate

LOG_EVERY = 50


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="stdlib", help="as --train.data of retnet train")
    add("--steps", type=int, default=1000)
    add("--minutes", type=float, help="end after so long, whatever --steps says of the schedule")
    add("--context", type=int, default=512)
    add("--batch-size", type=int, default=8)
    add("--width", type=int, default=320)
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=5)
    add("--learning-rate", type=float, default=2.5e-3)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=torch.get_num_threads())
    return parser


def main() -> int:
    """Train and validate; the exit code."""
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(highlight=False, stderr=True)
    data = load_tokens(arguments.data)
    torch.manual_seed(arguments.seed)
    model = llama(data.vocab_size, arguments)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    console.print(f"{num_parameters:,} parameters")
    dtype = choose_precision("auto", torch.device("cpu")).autocast_dtype
    trained_s, num_steps = train(model, data, dtype, arguments, console)
    with autocast(torch.device("cpu"), dtype), torch.inference_mode():
        nats = sum(costs(model.eval(), data, arguments.context))
    result = {
        "parameters": num_parameters,
        "steps": num_steps,
        "tokens": num_steps * arguments.batch_size * arguments.context,
        "trained_s": round(trained_s, 1),
        "precision": str(dtype or torch.float32),
        "validation_bits_per_byte": nats / log(2) / data.validation_bytes,
        **vars(arguments),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def llama(vocab_size: int, arguments: argparse.Namespace) -> LlamaForCausalLM:
    """A model with about the parameters of a RetNet of this width."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=arguments.width,
            intermediate_size=round(8 * arguments.width / 3),
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.heads,
            num_key_value_heads=arguments.heads,
            max_position_embeddings=arguments.context,
            attn_implementation="sdpa",
        )
    )


def train(
    model: LlamaForCausalLM,
    data: TokenData,
    dtype: torch.dtype | None,
    arguments: argparse.Namespace,
    console: Console,
) -> tuple[float, int]:
    """Seconds in training steps, and steps done."""
    config = OptimizerConfig(learning_rate=arguments.learning_rate)
    optimizer = make_optimizer(model, config)
    batches = Windows(
        stream=data.train,
        context=arguments.context,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        bos_id=data.bos_id,
        eos_id=data.eos_id,
    )
    total, start = 0.0, time.perf_counter()
    for step in range(arguments.steps):
        batch = batches.batch(step)
        with autocast(torch.device("cpu"), dtype):
            logits = model(input_ids=batch.tokens, use_cache=False).logits
        loss = next_token_loss(logits, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        set_learning_rate_(optimizer, learning_rate(step, arguments.steps, config))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if step % LOG_EVERY == LOG_EVERY - 1:
            elapsed_s = time.perf_counter() - start
            bits = total / LOG_EVERY / log(2)
            console.print(f"step {step + 1:,}: {bits:.3f} bits a token, {elapsed_s:,.0f} s")
            total = 0.0
            if arguments.minutes is not None and elapsed_s > 60 * arguments.minutes:
                return elapsed_s, step + 1
    return time.perf_counter() - start, arguments.steps


def costs(model: LlamaForCausalLM, data: TokenData, context: int) -> Iterator[float]:
    """Nats of each window of the held-out documents."""
    for document in data.validation:
        for tokens, targets in windows(document, data.bos_id, context):
            logits = model(input_ids=tokens, use_cache=False).logits
            mean = next_token_loss(logits, targets)
            yield float(mean) * int((targets != IGNORED).sum())


def windows(document: TokenDocument, bos_id: int, context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens, targets) [1, T]: half a window further each time, and only the new half scored."""
    ids = np.concatenate([[bos_id], document.ids]).astype(np.int64)
    half = context // 2
    for start in range(0, max(1, len(ids) - 1 - half), half):
        part = torch.from_numpy(ids[start : start + context + 1])[None]
        targets = part[:, 1:].clone()
        if start:
            targets[:, :half] = IGNORED
        yield part[:, :-1], targets


if __name__ == "__main__":
    sys.exit(main())
