"""What the sections of bench_gpu.py share: the device, the clock, what is timed and how."""

import gc
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from retnet.ops import retention_chunkwise
from retnet.ops.backends import why_not

Row = dict[str, Any]
ATTENTION = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


@dataclass
class Bench:
    """A device, how long there is, and what it can do at most (`ceilings` finds that)."""

    device: torch.device
    toy: bool
    deadline: float = 0.0
    bytes_per_s: float | None = None
    flops_per_s: float | None = None
    why_left_out: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The device's, as a part of a file's."""
        if self.device.type == "cpu":
            return "cpu"
        words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(self.device).lower())
        return "-".join(word for word in words if word not in ("nvidia", "amd", "instinct"))

    @property
    def arch(self) -> str:
        """The chip, as the table of configurations calls it."""
        if self.device.type == "cpu":
            return platform.machine()
        from retnet.ops.triton.chips import arch_of

        return arch_of(self.device)

    def facts(self) -> Row:
        """The machine and the versions."""
        packages = ("torch", "triton", "fla-core", "retnet")
        found = {name: _version(name) for name in packages}
        has_kernels = why_not("triton", self.device, torch.bfloat16) is None
        memory = None
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return {
            "device": self.name,
            "arch": self.arch if has_kernels else None,
            "memory_gb": memory,
            "toy": self.toy,
            "commit": _commit(),
            "date": time.strftime("%Y-%m-%d"),
            "cpus": os.cpu_count(),
            "versions": found,
            "why_no_kernels": why_not("triton", self.device, torch.bfloat16),
        }

    def is_late(self) -> bool:
        """Whether the section has had its time."""
        return time.monotonic() > self.deadline

    def free(self) -> None:
        """Hand back what was freed."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def ms(self, call: Callable[[], object], *, turns: int = 10) -> float:
        """The median of a call's turns, after two that don't count; fewer turns for long calls."""
        call()
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        once = time.perf_counter() - start
        turns = max(1, min(turns, int(1.5 / max(once, 1e-6)), 2 if self.toy else turns))
        return statistics.median(self._ms_of(call) for _ in range(turns))

    def _ms_of(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_gb(self, call: Callable[[], object]) -> float | None:
        """The most memory in use during a call, GiB, by torch's allocator."""
        if self.device.type != "cuda":
            return None
        self.free()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
        """Standard normal numbers."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device).to(dtype)

    def backends(self) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
        """The contenders among forms of retention that can run here."""
        found = {}
        for label, backend in (("ours triton", "triton"), ("ours torch", "torch"), ("fla", "fla")):
            reason = why_not(backend, self.device, torch.bfloat16)
            if reason is None:
                chunk = 64 if backend != "torch" else 256
                found[label] = partial(retention_chunkwise, backend=backend, chunk_size=chunk)
            else:
                self.why_left_out[label] = reason
        return found

    def warm(self, key_size: int, value_size: int) -> None:
        """Compile what heads of a size need, into Triton's cache on the disk."""
        for label, form in self.backends().items():
            if label == "ours torch":
                continue
            q, k = (self.normal(1, 256, 2, key_size).requires_grad_() for _ in "qk")
            v = self.normal(1, 256, 2, value_size).requires_grad_()
            form(q, k, v, torch.tensor([0.97, 0.99]).log())[0].sum().backward()
        self.wait()


def attention(kind: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax attention [B, H, T, D] by one of torch's ways; on a CPU by the one it has."""
    if q.device.type != "cuda":
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    with sdpa_kernel(ATTENTION[kind]):
        return scaled_dot_product_attention(q, k, v, is_causal=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.check_output(
            command, cwd=here, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
