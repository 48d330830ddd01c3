"""A whole training step, ours against torchscale's and Hugging Face's Llama, on this machine's CPU.

    python benchmarks/bench_training.py                     # a quarter of an hour, glibc as it is
    python benchmarks/bench_training.py --allocator tuned --save some-name
    python benchmarks/bench_training.py --sizes 20M --lengths 8192 --contenders ours llama
    python benchmarks/bench_training.py --quick             # a minute; shows that it runs

All contenders take turns in one process with one allocator, and a large product takes its turns
among them: what it reaches is the ceiling of that point. Peak memory is that of two steps in a
process of its own. The last line of the output is the whole result as JSON.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from contenders import missing
from flops import matmul_flops
from frame import Machine, main, parser_with_common_options, require_positive
from rich.console import Console
from trainers import DTYPES, LLAMA, OURS, TORCHSCALE, Batch, Trainer, available, build

from retnet.allocator import tune_allocator
from retnet.bench import Ratio, Report, Row, quotient, table, times_ms
from retnet.config import ModelConfig
from retnet.measure import dtype_name, in_fresh_process, measure, peak_rise_bytes

SIZES = {
    "20M": ModelConfig(d_model=384, num_layers=8, num_heads=6, vocab_size=8192),
    "110M": ModelConfig(d_model=768, num_layers=12, num_heads=12, vocab_size=16384),
    "quick": ModelConfig(d_model=64, num_layers=2, num_heads=1, vocab_size=256),
}
# Tokens of a step, B * T, where a sequence is no longer.
TOKENS = {"20M": 4096, "110M": 2048, "quick": 1024}
# Long steps vary less, and take their time: two turns do.
LONG, LONG_ROUNDS = 8192, 2
SQUARE_FLOPS = 4 * 2 * 2048**3
NOTES = (
    "A step: forward, loss, backward, gradients clipped, AdamW (fused). bf16 is autocast, over "
    "weights and moments in fp32. All contenders are given this project's loss, which never holds "
    "all logits.",
    "model GFLOP/s counts 6 N operations a token, N the numbers in matrices, the head's included; "
    "executed counts the products that were done, attention and retention among them. Shares are "
    "of the best rate of a 2048 x 2048 product of that dtype in turns with the contenders.",
    "peak MB is the rise of resident memory over building a model and two steps in a fresh "
    "process: weights, gradients, moments and what the backward pass needs.",
)
COLUMNS = {
    "contender": "contender",
    "dtype": "dtype",
    "median_ms": "ms/step",
    "min_ms": "min",
    "max_ms": "max",
    "tokens_per_s": "tokens/s",
    "model_gflop_per_s": "model GFLOP/s",
    "model_share_percent": "share %",
    "executed_gflop_per_s": "executed",
    "executed_share_percent": "share %",
    "peak_mb": "peak MB",
}


@dataclass(frozen=True)
class Point:
    """Where contenders meet: a size, B and T."""

    size: str
    batch_size: int
    num_tokens: int

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.size}, B={self.batch_size} T={self.num_tokens}"

    def batch(self) -> Batch:
        """What a step at this point reads."""
        return Batch.draw(SIZES[self.size].vocab_size, self.batch_size, self.num_tokens)


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = parser_with_common_options(__doc__)
    parser.set_defaults(rounds=3)
    add = parser.add_argument
    dtypes = [dtype_name(dtype) for dtype in DTYPES]
    add("--sizes", nargs="+", choices=list(SIZES), default=["20M", "110M"])
    add("--lengths", type=int, nargs="+", default=[512, 2048, 8192], help="values of T")
    add("--contenders", nargs="+", choices=available(), default=available())
    add("--dtypes", nargs="+", choices=dtypes, default=dtypes)
    add("--memory-lengths", type=int, nargs="*", default=[2048], help="values of T to weigh")
    add("--slow", action="store_true", help="also fp32 at 110M and T >= 8192: minutes a step")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """ValueError for sizes that cannot be run; and the sizes of --quick."""
    if arguments.quick:
        arguments.sizes, arguments.lengths, arguments.memory_lengths = ["quick"], [512, 1024], [512]
        arguments.rounds = 2
    require_positive(arguments, "lengths", "memory_lengths")


def run(arguments: argparse.Namespace, machine: Machine, console: Console) -> Report:
    """Measure every size and length, showing each table as soon as it is done."""
    rows: list[Row] = []
    num_parameters: dict[str, dict[str, int]] = {}
    for size in arguments.sizes:
        trainers = {name: build(name, SIZES[size]) for name in arguments.contenders}
        num_parameters[size] = {name: each.num_parameters for name, each in trainers.items()}
        console.print(f"parameters: {num_parameters[size]}")
        for num_tokens in arguments.lengths:
            point = Point(size, max(1, TOKENS[size] // num_tokens), num_tokens)
            found = rows_of(point, trainers, arguments)
            console.print(table(point.title, found, COLUMNS))
            rows += found
    settings = {
        "rounds": arguments.rounds,
        "long_rounds": LONG_ROUNDS,
        "models": {size: SIZES[size].to_dict() for size in arguments.sizes},
        "num_parameters": num_parameters,
        **machine.limits(),
    }
    return Report("training", machine.facts, settings, rows, ratios(rows), (*missing(), *NOTES))


def rows_of(
    point: Point, trainers: Mapping[str, Trainer], arguments: argparse.Namespace
) -> list[Row]:
    """A row for each contender in each dtype."""
    trials = [(name, dtype) for dtype in dtypes_at(point, arguments) for name in trainers]
    batch = point.batch()
    steps = {trial: partial(trainers[trial[0]].step, batch, trial[1]) for trial in trials}
    # The first step of each, which is slow anyway, is the one whose products are counted.
    flops = {trial: sum(matmul_flops(step).values()) for trial, step in steps.items()}
    ceilings = {("ceiling", dtype): square_products(dtype) for dtype in DTYPES}
    calls = {" ".join(map(str, key)): call for key, call in {**steps, **ceilings}.items()}
    rounds = arguments.rounds if point.num_tokens < LONG else min(arguments.rounds, LONG_ROUNDS)
    timings = measure(calls, rounds, warmup=0)
    rows = []
    for name, dtype in trials:
        timing = timings[f"{name} {dtype}"]
        ceiling = SQUARE_FLOPS / timings[f"ceiling {dtype}"].min_s
        rates = {
            "model": trainers[name].flops_per_token * batch.num_tokens / timing.median_s,
            "executed": flops[name, dtype] / timing.median_s,
        }
        rows.append(
            {
                "contender": name,
                "dtype": dtype_name(dtype),
                **asdict(point),
                **times_ms(timing),
                "tokens_per_s": batch.num_tokens / timing.median_s,
                **{f"{kind}_gflop_per_s": rate / 1e9 for kind, rate in rates.items()},
                **{f"{kind}_share_percent": 100 * r / ceiling for kind, r in rates.items()},
                "ceiling_gflop_per_s": ceiling / 1e9,
                "peak_mb": weigh(point, name, dtype, arguments),
            }
        )
    return rows


def dtypes_at(point: Point, arguments: argparse.Namespace) -> list[torch.dtype]:
    """Those asked for that are worth their time there."""
    is_slow = point.size == "110M" and point.num_tokens >= LONG and not arguments.slow
    asked = [dtype for dtype in DTYPES if dtype_name(dtype) in arguments.dtypes]
    return [dtype for dtype in asked if not (is_slow and dtype == torch.float32)]


def square_products(dtype: torch.dtype) -> Callable[[], object]:
    """SQUARE_FLOPS operations in the shape that a CPU does best."""
    square = torch.randn(2048, 2048).to(dtype)

    def multiply() -> None:
        for _ in range(4):
            torch.matmul(square, square)

    return multiply


def weigh(
    point: Point, name: str, dtype: torch.dtype, arguments: argparse.Namespace
) -> float | None:
    """Peak memory in MB, in a process of its own, where it is wanted."""
    is_enough = arguments.quick and (name == LLAMA or dtype == torch.float32)
    if point.num_tokens not in arguments.memory_lengths or is_enough:
        return None
    threads = torch.get_num_threads()
    peak = in_fresh_process(peak_of, point, name, dtype, arguments.allocator, threads)
    return peak / 2**20


def peak_of(point: Point, name: str, dtype: torch.dtype, allocator: str, num_threads: int) -> int:
    """Bytes by which training rises above this process, which is to be a fresh one.

    A small model trains first, so that libraries' code and buffers are not taken for the model's.
    """
    if allocator == "tuned":
        tune_allocator()
    torch.set_num_threads(num_threads)

    def train(point: Point) -> None:
        trainer, batch = build(name, SIZES[point.size]), point.batch()
        for _ in range(2):
            trainer.step(batch, dtype)

    train(Point("quick", 1, 512))
    return peak_rise_bytes(partial(train, point))


def ratios(rows: list[Row]) -> list[Ratio]:
    """What this project promises of training; None where a side was not measured."""

    def find(size: str, num_tokens: int, contender: str, dtype: str, key: str) -> float | None:
        wanted = {"size": size, "num_tokens": num_tokens, "contender": contender, "dtype": dtype}
        return next((row[key] for row in rows if wanted.items() <= row.items()), None)

    def speed(
        size: str, num_tokens: int, dtype: str, rival: tuple[str, str], goal: float | None = None
    ) -> Ratio:
        ours = find(size, num_tokens, OURS, dtype, "tokens_per_s")
        value = quotient(ours, find(size, num_tokens, *rival, "tokens_per_s"))
        name = f"speed, {size} T={num_tokens}: ours {dtype} / {' '.join(rival)}"
        return Ratio(name, value, at_least=goal)

    def growth(size: str) -> Ratio:
        sides = (find(size, tokens, OURS, "bf16", "tokens_per_s") for tokens in (512, 8192))
        name = f"time a token, {size}, ours bf16: T=8192 / T=512"
        return Ratio(name, quotient(*sides), at_most=1.15)

    def share(size: str, num_tokens: int, kind: str, goal: float | None = None) -> Ratio:
        value = find(size, num_tokens, OURS, "bf16", f"{kind}_share_percent")
        name = f"% of the bf16 ceiling, {size} T={num_tokens}, {kind}: ours"
        return Ratio(name, value, at_least=goal)

    def memory(size: str, dtype: str, rival: str) -> Ratio:
        sides = (find(size, 2048, name, dtype, "peak_mb") for name in (OURS, rival))
        return Ratio(f"peak memory, {size} T=2048 {dtype}: ours / {rival}", quotient(*sides))

    return [
        share("110M", 2048, "model", 55),
        speed("110M", 2048, "bf16", (LLAMA, "bf16"), 1.4),
        speed("110M", 2048, "bf16", (TORCHSCALE, "fp32"), 3.5),
        speed("20M", 8192, "bf16", (LLAMA, "bf16"), 5),
        *(growth(size) for size in ("20M", "110M")),
        share("110M", 2048, "executed"),
        speed("110M", 2048, "bf16", (TORCHSCALE, "bf16")),
        *(speed("110M", 2048, "fp32", (rival, "fp32")) for rival in (TORCHSCALE, LLAMA)),
        speed("20M", 512, "bf16", (LLAMA, "bf16")),
        *(memory("110M", dtype, r) for dtype in ("bf16", "fp32") for r in (TORCHSCALE, LLAMA)),
    ]


if __name__ == "__main__":
    sys.exit(main(parser(), run, check))
