"""The retention op against what else computes it, or something like it, on this machine's CPU.

    python benchmarks/bench_retention.py                    # minutes, with glibc as it is
    python benchmarks/bench_retention.py --allocator tuned --save some-name
    python benchmarks/bench_retention.py --quick            # seconds; shows that it runs

All contenders take turns in one process with one allocator; peak memory is that of one call in a
process of its own. The last line of the output is the whole result as JSON.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace

import torch
from contenders import BOTH, PASSES, Contender, Shape, contenders, missing
from flops import matmul_flops
from frame import Machine, main, parser_with_common_options, require_positive
from rich.console import Console

from retnet.allocator import tune_allocator
from retnet.bench import Ratio, Report, Row, quotient, table, times_ms
from retnet.measure import (
    Timing,
    dtype_name,
    in_fresh_process,
    measure,
    peak_rise_bytes,
)

OURS = "ours chunkwise torch"
TORCHSCALE = "torchscale chunk 512"
SDPA = "sdpa causal, V = K"
NOTES = (
    "sdpa gets half our value width, V = K, in its favour: with V = 2 K torch has no fused path on "
    "a CPU.",
    "forward is without autograd. bf16 means bf16 tensors in and out; 'products in' is the dtype "
    "that was multiplied.",
    "GFLOP/s count the matrix products that were executed. share: the least time these take at "
    "this run's GEMM ceilings, of the time taken.",
    "peak MB is the rise of resident memory during one call in a fresh process, without the inputs "
    "and the output's gradient.",
)
COLUMNS = {
    "contender": "contender",
    "dtype": "dtype",
    "pass": "pass",
    "median_ms": "ms",
    "min_ms": "min",
    "max_ms": "max",
    "ns_per_token": "ns/token",
    "products": "products in",
    "gflop_per_s": "GFLOP/s",
    "share_percent": "share %",
    "peak_mb": "peak MB",
}


@dataclass(frozen=True)
class Trial:
    """One contender in one dtype, doing one pass at one shape: a row of the result."""

    contender: Contender
    dtype: torch.dtype
    kind: str
    shape: Shape

    @property
    def title(self) -> str:
        """A name of its own among the trials of one shape."""
        return f"{self.contender.name} {dtype_name(self.dtype)} {self.kind}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = parser_with_common_options(__doc__)
    add = parser.add_argument
    add("--tokens", type=int, default=16384, help="B * T; B is 1 where T is larger")
    add("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768], help="values of T")
    add("--heads", type=int, default=8)
    add("--key-size", type=int, default=64)
    add("--value-size", type=int, default=128)
    add("--memory-lengths", type=int, nargs="*", default=[8192], help="values of T to weigh")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """ValueError for sizes that cannot be run; and the sizes of --quick."""
    if arguments.quick:
        arguments.tokens, arguments.lengths, arguments.memory_lengths = 512, [256, 512], [512]
        arguments.heads, arguments.rounds = 2, 2
    require_positive(
        arguments, "tokens", "lengths", "memory_lengths", "heads", "key_size", "value_size"
    )


def run(arguments: argparse.Namespace, machine: Machine, console: Console) -> Report:
    """Measure every length, showing its table as soon as it is done."""
    rows: list[Row] = []
    for length in arguments.lengths:
        batch_size = max(1, arguments.tokens // length)
        shape = Shape(batch_size, length, arguments.heads, arguments.key_size, arguments.value_size)
        found = [row for kind in PASSES for row in rows_of(shape, kind, arguments, machine)]
        console.print(table(shape.title, found, COLUMNS))
        rows += found
    settings = {"rounds": arguments.rounds, **machine.limits()}
    return Report("retention", machine.facts, settings, rows, ratios(rows), (*missing(), *NOTES))


def rows_of(shape: Shape, kind: str, arguments: argparse.Namespace, machine: Machine) -> list[Row]:
    """A row for each contender and dtype whose pass of that kind is worth its time."""
    trials = [
        Trial(contender, dtype, kind, shape)
        for contender in contenders()
        for dtype in contender.dtypes
        if shape.num_tokens <= contender.max_tokens and kind in contender.passes
    ]
    calls = {trial.title: trial.contender.call(shape, trial.dtype, kind) for trial in trials}
    timings = measure(calls, arguments.rounds)
    del calls
    weighed = {trial.title: weigh(trial, arguments) for trial in trials}
    return [row_of(trial, timings[trial.title], machine, weighed[trial.title]) for trial in trials]


def weigh(trial: Trial, arguments: argparse.Namespace) -> int | None:
    """The trial's peak memory in bytes, in a process of its own, where it is wanted."""
    few = {f"{name} fp32 {BOTH}" for name in (OURS, TORCHSCALE)}
    unwanted = arguments.quick and trial.title not in few
    if trial.shape.num_tokens not in arguments.memory_lengths or unwanted:
        return None
    num_threads = torch.get_num_threads()
    return in_fresh_process(peak_of, trial.title, trial.shape, arguments.allocator, num_threads)


def row_of(trial: Trial, timing: Timing, machine: Machine, peak: int | None) -> Row:
    """What is reported of a trial. Times in ms."""
    flops = executed_flops(trial)
    least_s = sum(count / machine.gemm_flops_per_s[product] for product, count in flops.items())
    shape = trial.shape
    return {
        "contender": trial.contender.name,
        "dtype": dtype_name(trial.dtype),
        "pass": trial.kind,
        **asdict(shape),
        **times_ms(timing),
        "ns_per_token": timing.median_s / (shape.batch_size * shape.num_tokens) * 1e9,
        "products": "+".join(sorted(flops)),
        "gflop_per_s": sum(flops.values()) / timing.median_s / 1e9,
        "share_percent": 100 * least_s / timing.median_s,
        "peak_mb": None if peak is None else peak / 2**20,
    }


def executed_flops(trial: Trial) -> dict[str, int]:
    """By the dtype of the products. Counted on one row: the work is proportional to the batch."""
    call = trial.contender.call(replace(trial.shape, batch_size=1), trial.dtype, trial.kind)
    return {
        dtype_name(dtype): trial.shape.batch_size * count
        for dtype, count in matmul_flops(call).items()
    }


def peak_of(title: str, shape: Shape, allocator: str, num_threads: int) -> int:
    """Bytes that the trial of that title adds to this process; to be run in a fresh one.

    A small call first, so that libraries' own buffers and code are not taken for the contender's.
    """
    if allocator == "tuned":
        tune_allocator()
    torch.set_num_threads(num_threads)
    trials = (
        Trial(c, dtype, kind, shape) for c in contenders() for dtype in c.dtypes for kind in PASSES
    )
    trial = next(trial for trial in trials if trial.title == title)
    small = replace(shape, batch_size=1, num_tokens=min(shape.num_tokens, 512))
    trial.contender.call(small, trial.dtype, trial.kind)()
    return peak_rise_bytes(trial.contender.call(shape, trial.dtype, trial.kind))


def ratios(rows: list[Row]) -> list[Ratio]:
    """What this project promises of its op; None where a side was not measured."""

    def find(contender: str, dtype: str, num_tokens: int, key: str) -> float | None:
        wanted = {"contender": contender, "dtype": dtype, "num_tokens": num_tokens, "pass": BOTH}
        return next((row[key] for row in rows if wanted.items() <= row.items()), None)

    def speed(
        dtype: str, rival: str, rival_dtype: str = "fp32", at_least: float | None = None
    ) -> Ratio:
        value = quotient(
            find(rival, rival_dtype, 8192, "median_ms"), find(OURS, dtype, 8192, "median_ms")
        )
        name = f"speed, forward+backward, T=8192: ours {dtype} / {rival} {rival_dtype}"
        return Ratio(name, value, at_least=at_least)

    def growth(dtype: str) -> Ratio:
        sides = (find(OURS, dtype, num_tokens, "ns_per_token") for num_tokens in (32768, 8192))
        name = f"time per token, forward+backward, ours {dtype}: T=32768 / T=8192"
        return Ratio(name, quotient(*sides), at_most=1.2)

    def memory(dtype: str) -> Ratio:
        value = quotient(
            find(OURS, dtype, 8192, "peak_mb"), find(TORCHSCALE, "fp32", 8192, "peak_mb")
        )
        name = f"peak memory, forward+backward, T=8192: ours {dtype} / {TORCHSCALE} fp32"
        return Ratio(name, value, at_most=1 / 3)

    return [
        speed("bf16", TORCHSCALE, at_least=5),
        speed("bf16", SDPA, at_least=20),
        speed("fp32", TORCHSCALE, at_least=2.5),
        speed("fp32", SDPA, at_least=10),
        *(growth(dtype) for dtype in ("bf16", "fp32")),
        *(memory(dtype) for dtype in ("bf16", "fp32")),
        speed("fp32", "torchscale chunk 128"),
        speed("bf16", TORCHSCALE, "bf16"),
        speed("bf16", SDPA, "bf16"),
    ]


if __name__ == "__main__":
    sys.exit(main(parser(), run, check))
