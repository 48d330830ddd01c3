"""What all benchmarks here share: options, the machine at the top, the result at the end."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from retnet.allocator import tune_allocator
from retnet.bench import Report, free_result_path, ratio_table
from retnet.measure import (
    gemm_flops_per_s,
    machine_facts,
    read_bytes_per_s,
    threads_of_others,
)

BUSY = 0.3  # threads of others, above which a figure is not worth keeping
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Machine:
    """What is known of the machine once its own limits have been measured."""

    facts: dict[str, Any]
    gemm_flops_per_s: dict[str, float]
    read_bytes_per_s: float

    def limits(self) -> dict[str, Any]:
        """The measured limits, for a report's settings."""
        return {
            "gemm_flops_per_s": self.gemm_flops_per_s,
            "read_bytes_per_s": self.read_bytes_per_s,
        }


def parser_with_common_options(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    allocators = ("default", "tuned")
    add("--allocator", choices=allocators, default="default", help="glibc's, for every contender")
    add("--rounds", type=int, default=5, help="turns of each contender; the median counts")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--save", metavar="NAME", help="also write benchmarks/results/NAME.json")
    add("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
    return parser


def require_positive(arguments: argparse.Namespace, *names: str) -> None:
    """ValueError for a number, or a list of numbers, below 1."""
    for name in names:
        value = getattr(arguments, name)
        if min(value if isinstance(value, list) else [value], default=1) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least 1, got {value}; give a positive number")


def main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Machine, Console], Report],
    check: Callable[[argparse.Namespace], None],
    *,
    must_meet_goals: bool = False,
) -> int:
    """Read the options, measure the machine, run, show and save; the exit code.

    must_meet_goals: whether it is 1 where a goal is missed.
    """
    arguments = parser.parse_args()
    console = Console(width=max(140, Console().width), highlight=False)
    try:
        require_positive(arguments, "rounds", "threads")
        check(arguments)
        if arguments.save:
            free_result_path(RESULTS, arguments.save)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = run(arguments, _machine(arguments, console), console)
    if report.ratios:
        console.print(ratio_table(report.ratios))
    for note in report.notes:
        console.print(f"* {note}", style="dim")
    if arguments.save:
        console.print(f"saved {report.save(RESULTS, arguments.save)}")
    print(report.json_line())
    return int(must_meet_goals and any(ratio.met is False for ratio in report.ratios))


def _machine(arguments: argparse.Namespace, console: Console) -> Machine:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    allocator = tune_allocator().detail if arguments.allocator == "tuned" else "default"
    facts = {**machine_facts(allocator), "threads_of_others": threads_of_others()}
    machine = Machine(
        facts,
        gemm_flops_per_s(arguments.rounds, size=256 if arguments.quick else 2048),
        read_bytes_per_s(arguments.rounds, num_bytes=2**24 if arguments.quick else 2**29),
    )
    rates = [
        f"{name} GEMM {rate / 1e9:.0f} GFLOP/s" for name, rate in machine.gemm_flops_per_s.items()
    ]
    rates.append(f"reads {machine.read_bytes_per_s / 1e9:.1f} GB/s")
    console.print(
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}, {', '.join(rates)}"
    )
    console.print(
        f"AVX512-BF16: {facts['avx512_bf16']}, AMX: {facts['amx_bf16']}, allocator: {allocator}"
    )
    if (facts["threads_of_others"] or 0) > BUSY:
        others = f"{facts['threads_of_others']:.1f} other threads want the cores"
        console.print(f"warning: {others}; what follows says little", style="bold red")
    return machine
