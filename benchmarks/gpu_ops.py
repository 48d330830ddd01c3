"""Sections of bench_gpu.py about the op: what the device can do at most, whether the kernels are
right, and how fast they are.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_frame import ATTENTION, Bench, Row, attention
from torch import Tensor

from retnet.ops.reference import retention_parallel

# (K, V, H), of models 2,048 wide; the first is the paper's.
SHAPES = ((256, 512, 8), (128, 256, 16), (128, 128, 16), (64, 128, 32))
SUPER, CHUNK = 256, 64
# Relative errors that rounding explains.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
NAMES = ("out", "state", "dq", "dk", "dv", "dstate")


def ceilings(bench: Bench) -> Iterator[Row]:
    """Bytes a second of a copy, and operations a second of a product."""
    size = 2**20 if bench.toy else 2**32
    source = torch.zeros(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    ms = bench.ms(partial(target.copy_, source))
    bench.bytes_per_s = 2 * size / ms * 1e3
    del source, target
    width = 128 if bench.toy else 8192
    a, b = (bench.normal(width, width, seed=seed) for seed in (0, 1))
    ms = bench.ms(lambda: a @ b)
    bench.flops_per_s = 2 * width**3 / ms * 1e3
    yield {"copy_gb_per_s": bench.bytes_per_s / 1e9, "bf16_tflops": bench.flops_per_s / 1e12}


def warm(bench: Bench) -> Iterator[Row]:
    """Compile all that will be timed, in processes beside each other."""
    if bench.device.type == "cpu":
        return
    script = Path(__file__).with_name("bench_gpu.py")
    sizes = [f"{key}x{value}" for key, value, _ in SHAPES]
    running = {
        size: subprocess.Popen([sys.executable, script, "--warm", size], stderr=subprocess.PIPE)
        for size in sizes
    }
    for size, process in running.items():
        _, said = process.communicate()
        yield {"heads": size, "rc": process.returncode, "error": said.decode()[-300:] or None}


def gate(bench: Bench) -> Iterator[Row]:
    """Outputs, states and gradients against sums in fp64, and against themselves."""
    lengths = (1, 63, 65, 257, 1000) if not bench.toy else (1, 65)
    shapes = (
        ((256, 512), (128, 256), (64, 128), (128, 128), (80, 48)) if not bench.toy else ((16, 24),)
    )
    gammas = (1 - 2**-3, 1 - 2**-5, 1 - 2**-9, 1 - 2**-12)
    forms = bench.backends()
    yield from ({"contender": name, "left_out": why} for name, why in bench.why_left_out.items())
    for dtype, (keys, values), tokens in itertools.product(TOLERANCE, shapes, lengths):
        for name, form in forms.items():
            if bench.is_late():
                return
            if name == "fla" and (dtype == torch.float32 or keys == 80):
                continue
            case = (tokens, keys, values)
            row = {"contender": name, "dtype": str(dtype)[6:], "case": list(case)}
            try:
                errors, same = _errors(bench, form, case, gammas, dtype)
            except Exception as error:
                yield {**row, "passed": False, "error": f"{type(error).__name__}: {error}"[:300]}
                continue
            passed = all(each <= TOLERANCE[dtype] for each in errors.values())
            yield {**row, "errors": errors, "repeats": same, "passed": passed and same}


def _errors(
    bench: Bench,
    form: Callable[..., tuple[Tensor, Tensor]],
    case: tuple[int, int, int],
    gammas: tuple[float, ...],
    dtype: torch.dtype,
) -> tuple[dict[str, float], bool]:
    """Relative errors by name, and whether a second run has the same bits."""
    tokens, keys, values = case
    heads = len(gammas)
    q, k = (bench.normal(2, tokens, heads, keys, dtype=dtype, seed=seed) for seed in (0, 1))
    v, grad = (bench.normal(2, tokens, heads, values, dtype=dtype, seed=seed) for seed in (2, 3))
    state, grad_state = (
        bench.normal(2, heads, keys, values, dtype=torch.float32, seed=seed) for seed in (4, 5)
    )
    log_decay = torch.tensor(gammas, dtype=torch.float64).log()

    def run(form: Callable[..., tuple[Tensor, Tensor]], exact: bool) -> list[Tensor]:
        leaves = [x.double() if exact else x.clone() for x in (q, k, v, state)]
        leaves = [x.requires_grad_() for x in leaves]
        results = form(*leaves[:3], log_decay, leaves[3])
        like = [x.to(y.dtype) for x, y in zip((grad, grad_state), results, strict=True)]
        grads = torch.autograd.grad(results, leaves, like)
        return [*(x.detach() for x in results), *grads]

    true = run(lambda q, k, v, lg, s: retention_parallel(q, k, v, lg, s, None), exact=True)
    found, again = run(form, exact=False), run(form, exact=False)
    errors = {
        name: float((x.double() - y).norm() / y.norm())
        for name, x, y in zip(NAMES, found, true, strict=True)
    }
    return errors, all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


def ops(bench: Bench) -> Iterator[Row]:
    """Forward, and forward and backward, of 32,768 tokens in rows of several lengths."""
    total = 256 if bench.toy else 32_768
    lengths = (128, 256) if bench.toy else (2_048, 8_192, 32_768, 131_072)
    shapes = ((16, 32, 2),) if bench.toy else SHAPES
    for (keys, values, heads), tokens in itertools.product(shapes, lengths):
        batch = max(1, total // tokens)
        for name, call in _contenders(bench, batch, tokens, heads, keys, values):
            for kind in ("forward", "forward+backward"):
                if bench.is_late():
                    return
                row = {
                    "contender": name,
                    "pass": kind,
                    "key_size": keys,
                    "value_size": values,
                    "heads": heads,
                    "batch_size": batch,
                    "tokens": tokens,
                }
                yield {**row, **_timed(bench, partial(call, kind == "forward+backward"), row)}
                bench.free()


def _timed(bench: Bench, call: Callable[[], object], row: Row) -> Row:
    try:
        found: Row = {"ms": bench.ms(call), "peak_gb": bench.peak_gb(call)}
    except Exception as error:
        bench.free()
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    if not row["contender"].startswith("sdpa"):
        found["floor_ms"] = floor_ms(bench, row)
    return found


def _contenders(
    bench: Bench, batch: int, tokens: int, heads: int, keys: int, values: int
) -> Iterable[tuple[str, Callable[[bool], object]]]:
    """Calls that take whether the gradients are wanted."""
    log_decay = torch.linspace(-3.4, -6.2, heads, dtype=torch.float64).exp().neg().log1p()
    for name, form in bench.backends().items():
        yield (
            name,
            partial(
                _run,
                lambda q, k, v, form=form: form(q, k, v, log_decay)[0],
                [
                    bench.normal(batch, tokens, heads, size, seed=size)
                    for size in (keys, keys, values)
                ],
            ),
        )
    if (keys, values, heads) not in (SHAPES[0], (16, 32, 2)):
        return  # attention has the same heads beside every shape
    size = 16 if bench.toy else 128
    inputs = [bench.normal(batch, keys * heads // size, tokens, size, seed=i) for i in range(3)]
    for kind in ATTENTION:
        if kind != "sdpa math" or tokens <= 2_048:
            yield kind, partial(_run, partial(attention, kind), inputs)


def _run(function: Callable[..., Tensor], inputs: list[Tensor], gradients: bool) -> None:
    if not gradients:
        with torch.no_grad():
            function(*inputs)
        return
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def floor_ms(bench: Bench, row: Row) -> float | None:
    """The least time: that of reading and writing each tensor once, or of the products of chunks of
    64 in super-chunks of 256, whichever is longer, at this device's ceilings.
    """
    if bench.bytes_per_s is None or bench.flops_per_s is None:
        return None
    keys, values = row["key_size"], row["value_size"]
    vectors = row["batch_size"] * row["tokens"] * row["heads"]
    products = 4 * keys * values + (SUPER + CHUNK) * (keys + values)
    numbers = 2 * keys + 2 * values
    if row["pass"] != "forward":
        products += 10 * keys * values + 3 * (SUPER + CHUNK) * (keys + values)
        numbers += 4 * keys + 3 * values  # q, k, v, dO; dq, dk, dv
    return 1e3 * max(
        2 * vectors * numbers / bench.bytes_per_s, vectors * products / bench.flops_per_s
    )
