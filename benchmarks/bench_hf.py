"""What Hugging Face's `generate` costs over this project's own, a token, and in memory.

    python benchmarks/bench_hf.py                     # minutes
    python benchmarks/bench_hf.py --save some-name
    python benchmarks/bench_hf.py --quick             # seconds; shows that it runs

Both drive the same weights, greedily, and take turns in one process. The last line of the output is
the whole result as JSON.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
import transformers
from frame import Machine, main, parser_with_common_options, require_positive
from rich.console import Console
from torch import Tensor

from retnet.bench import Ratio, Report, Row, quotient, table, times_ms
from retnet.config import ModelConfig, preset
from retnet.generation import SamplingParams, generate
from retnet.hf import RetNetCache, RetNetForCausalLM
from retnet.hf.inputs import CACHE_NAME
from retnet.measure import dtype_name, in_fresh_process, measure, peak_rise_bytes
from retnet.model import RetNet

OWN, ADAPTED = "retnet.generate", "RetNetForCausalLM.generate"
DTYPES = (torch.float32, torch.bfloat16)
MEMORY_TOKENS = (200, 2000)
NOTES = (
    "A turn reads the prompt and writes the new tokens; ms/token is the turn over the new tokens.",
    "memory: how far a fresh process rises above its model while it writes so many tokens.",
)
COLUMNS = {
    "contender": "contender",
    "dtype": "dtype",
    "batch_size": "B",
    "median_ms": "ms/token",
    "min_ms": "min",
    "max_ms": "max",
}
MEMORY_COLUMNS = {
    "num_new_tokens": "tokens written",
    "peak_rise_mb": "peak above the model, MB",
    "state_bytes": "state, bytes",
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = parser_with_common_options(__doc__)
    add = parser.add_argument
    add("--preset", default="base", help="the RetNet, a name of retnet.PRESETS")
    add("--vocab-size", type=int, default=32768)
    add("--batch-sizes", type=int, nargs="+", default=[1, 8])
    add("--prompt", type=int, default=32, help="tokens read first")
    add("--tokens", type=int, default=32, help="tokens written in a turn")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """ValueError for sizes that cannot be run; and the sizes of --quick."""
    require_positive(arguments, "batch_sizes", "prompt", "tokens", "vocab_size")
    if arguments.quick:
        arguments.batch_sizes, arguments.prompt, arguments.tokens = [1], 4, 4
        arguments.rounds = 2
    model_config(arguments)


def model_config(arguments: argparse.Namespace) -> ModelConfig:
    """The model to measure."""
    if arguments.quick:
        return ModelConfig(d_model=64, num_layers=2, num_heads=2)
    return preset(arguments.preset, vocab_size=arguments.vocab_size)


def run(arguments: argparse.Namespace, machine: Machine, console: Console) -> Report:
    """Measure everything, showing each table as soon as it is done."""
    config = model_config(arguments)
    core = RetNet(config).eval()
    num_parameters = sum(weight.numel() for weight in core.parameters())
    console.print(f"{num_parameters:,} parameters, transformers {transformers.__version__}")
    rows: list[Row] = []
    for dtype in DTYPES:
        core = core.to(dtype)
        for batch_size in arguments.batch_sizes:
            rows += time_rows(core, batch_size, arguments)
    console.print(table("writing", rows, COLUMNS))
    lengths = (4, 40) if arguments.quick else MEMORY_TOKENS
    memory = [in_fresh_process(partial(memory_row, length)) for length in lengths]
    console.print(table("memory, preset small", memory, MEMORY_COLUMNS))
    settings = {
        "model": config.to_dict(),
        "num_parameters": num_parameters,
        "transformers": transformers.__version__,
        "prompt": arguments.prompt,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        **machine.limits(),
    }
    ratios = [*time_ratios(rows), *memory_ratios(memory)]
    return Report("hf", machine.facts, settings, [*rows, *memory], ratios, NOTES)


def time_rows(core: RetNet, batch_size: int, arguments: argparse.Namespace) -> list[Row]:
    """A row for each contender: the time of a token, reading the prompt included."""
    prompt = torch.randint(core.config.vocab_size, (batch_size, arguments.prompt))
    adapted = RetNetForCausalLM.from_retnet(core)
    turns: dict[str, Callable[[], object]] = {
        OWN: partial(write_own, core, prompt, arguments.tokens),
        ADAPTED: partial(write_adapted, adapted, prompt, arguments.tokens),
    }
    if not torch.equal(write_own(core, prompt, 4), write_adapted(adapted, prompt, 4)):
        raise RuntimeError("the two do not write the same")
    timings = measure(turns, arguments.rounds)
    return [
        {
            "kind": "time",
            "contender": name,
            "dtype": dtype_name(next(core.parameters()).dtype),
            "batch_size": batch_size,
            **times_ms(timing.divided_by(arguments.tokens)),
        }
        for name, timing in timings.items()
    ]


def write_own(core: RetNet, prompt: Tensor, num_tokens: int) -> Tensor:
    """What retnet.generate adds to the prompts [B, T]: [B, num_tokens]."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0)
    return torch.stack(list(generate(core, prompt, params)), dim=1)


def write_adapted(
    adapted: RetNetForCausalLM, prompt: Tensor, num_tokens: int, cache: RetNetCache | None = None
) -> Tensor:
    """The same through Hugging Face's generate, which leaves its state in the cache."""
    written = adapted.generate(
        prompt,
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **{CACHE_NAME: cache},
    )
    assert isinstance(written, Tensor)
    return written[:, prompt.shape[1] :]


def memory_row(num_tokens: int) -> Row:
    """How far memory rises while so many tokens are written, and the bytes of the state then."""
    adapted = RetNetForCausalLM.from_retnet(RetNet(preset("small")).eval())
    prompt = torch.randint(3, 259, (1, 32))
    write_adapted(adapted, prompt, 8)
    cache = RetNetCache(adapted.config)
    rise = peak_rise_bytes(partial(write_adapted, adapted, prompt, num_tokens, cache))
    return {
        "kind": "memory",
        "num_new_tokens": num_tokens,
        "peak_rise_mb": rise / 2**20,
        "state_bytes": cache.num_bytes,
    }


def time_ratios(rows: list[Row]) -> list[Ratio]:
    """What the adapter costs, for each dtype and batch size."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        times = found.setdefault((row["dtype"], row["batch_size"]), {})
        times[row["contender"]] = row["median_ms"]
    return [
        Ratio(
            f"time a token {dtype}, B={batch_size}: {ADAPTED} / {OWN}",
            quotient(times[ADAPTED], times[OWN]),
            at_most=1.15,
        )
        for (dtype, batch_size), times in found.items()
    ]


def memory_ratios(rows: list[Row]) -> list[Ratio]:
    """How much more memory the longer text takes, in MB: none, but for the noise of a process."""
    first, last = (row["peak_rise_mb"] for row in rows)
    name = f"peak memory, MB: {rows[1]['num_new_tokens']} tokens - {rows[0]['num_new_tokens']}"
    return [Ratio(name, last - first, at_most=2)]


if __name__ == "__main__":
    sys.exit(main(parser(), run, check))
