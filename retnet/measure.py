"""Measuring fairly: time in turns in one process, memory in a fresh one, the machine's own limits.

Nothing here knows what is being measured, and nothing prints.
"""

import ctypes
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from retnet.processes import Worker

P = ParamSpec("P")
R = TypeVar("R")


# --- time


@dataclass(frozen=True)
class Timing:
    """The wall-clock seconds of one contender's turns."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The figure to report."""
        return statistics.median(self.seconds)

    @property
    def min_s(self) -> float:
        """The quickest turn."""
        return min(self.seconds)

    @property
    def max_s(self) -> float:
        """The slowest turn."""
        return max(self.seconds)

    def divided_by(self, count: int) -> "Timing":
        """The times of one of the `count` equal things that were done in a turn."""
        return Timing(tuple(seconds / count for seconds in self.seconds))


def measure(
    functions: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 1
) -> dict[str, Timing]:
    """Time every function once a round, so that a slow spell of the machine hits all of them alike.

    Each round starts one function later than the one before, so that none is always the first.

    functions: name -> what to time; what it returns is dropped.
    rounds, warmup: timed turns of each function, and untimed ones before.
    """
    if rounds < 1 or not functions:
        raise ValueError(
            f"measure needs rounds >= 1 and a function, got {rounds} and {len(functions)} functions"
        )
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            elapsed = _seconds_of(functions[name])
            if turn >= 0:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(turns)) for name, turns in seconds.items()}


def _seconds_of(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    del result  # freed off the clock
    return elapsed


# --- memory


def peak_rise_bytes(call: Callable[[], object]) -> int:
    """How far this process's resident memory rises above where it stands, while `call` runs.

    Freed memory that the C library still holds is handed back first: its reuse would not be seen.
    A figure that means anything comes from a fresh process: `in_fresh_process`.
    """
    gc.collect()
    _trim_heap()
    _reset_peak()
    before = _resident_bytes()
    result = call()
    rise = _peak_resident_bytes() - before
    del result
    return max(0, rise)


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory in use so far: by torch on a GPU, else by this process.

    None where the system does not tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return _peak_resident_bytes()
    except ImportError:
        return None


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`function(*args)` in a new Python process, which imports the function's module for it."""
    worker = Worker(function, *args, **kwargs)
    try:
        return worker.result()
    finally:
        worker.terminate()
        worker.end(patience_s=1.0)


def _trim_heap() -> None:
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> None:
    """Linux counts the peak anew from here. Elsewhere it stays the process's highest ever."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident_bytes() -> int:
    found = _proc_status_bytes("VmRSS")
    return _peak_resident_bytes() if found is None else found


def _peak_resident_bytes() -> int:
    # Not getrusage where there is /proc: its peak starts at that of the process that started us.
    found = _proc_status_bytes("VmHWM")
    if found is not None:
        return found
    import resource  # Windows has none

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _proc_status_bytes(key: str) -> int | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


# --- the machine


def machine_facts(allocator: str = "default") -> dict[str, Any]:
    """What a timing depends on. A fact that cannot be found out here is None."""
    cpuinfo = Path("/proc/cpuinfo")
    fields_ = dict(_cpuinfo_field(line) for line in _lines(cpuinfo) if ":" in line)
    flags = fields_.get("flags", "").split()
    return {
        "cpu": fields_.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": "avx512_bf16" in flags if flags else None,
        "amx_bf16": "amx_bf16" in flags if flags else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": " ".join((platform.system(), *platform.libc_ver())).strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "allocator": allocator,
        "preload": os.environ.get("LD_PRELOAD"),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def threads_of_others(samples: int = 20) -> float | None:
    """How many threads besides this one want a core, on average over a second; None if unknown."""
    loadavg = Path("/proc/loadavg")
    if not loadavg.exists():
        return None
    runnable = []
    for _ in range(samples):
        runnable.append(int(loadavg.read_text().split()[3].partition("/")[0]) - 1)
        time.sleep(1 / samples)
    # A kernel that does not even see this thread running does not count.
    return statistics.mean(runnable) if min(runnable) >= 0 else None


def git_commit() -> str | None:
    """The commit that this package is checked out at, with "-dirty" where files differ, or None."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
        "--abbrev=12",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _cpuinfo_field(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def gemm_flops_per_s(rounds: int, *, size: int = 2048) -> dict[str, float]:
    """The best rate of a square product, by dtype: the ceiling of all that is made of products."""
    dtypes = (torch.float32, torch.bfloat16)
    operands = {dtype_name(dtype): torch.randn(size, size).to(dtype) for dtype in dtypes}
    products = {name: partial(torch.matmul, a, a) for name, a in operands.items()}
    timings = measure(products, rounds)
    return {name: 2 * size**3 / timing.min_s for name, timing in timings.items()}


def read_bytes_per_s(rounds: int, *, num_bytes: int = 2**29) -> float:
    """The best rate of reading a large tensor once: the ceiling of decoding at batch 1."""
    tensor = torch.ones(num_bytes // 4)
    return num_bytes / measure({"sum": tensor.sum}, rounds)["sum"].min_s


def dtype_name(dtype: torch.dtype) -> str:
    """ "fp32" for torch.float32, "bf16" for torch.bfloat16, else torch's own name."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64"}
    return names.get(dtype, str(dtype).removeprefix("torch."))
