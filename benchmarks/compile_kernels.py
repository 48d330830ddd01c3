"""The GPU kernels compiled ahead of time, without a GPU: what they take of a chip, and whether that
is within its limits.

    python benchmarks/compile_kernels.py              # minutes; what a chip hasn't is an error
    python benchmarks/compile_kernels.py --archs sm_90 --sizes 256x512
    python benchmarks/compile_kernels.py --save       # keeps it in benchmarks/results

Takes the Triton that is installed, 3.4 or newer; the record has a list for each. NVIDIA's tools
that count registers lie in Triton's package, AMD's compiler says it itself.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import retnet.ops.triton
from retnet.ops.triton import decode, outputs, states, step
from retnet.ops.triton.configs import FUSED, SHARED_BYTES, Kernel, config_for, super_chunk

RECORD = Path(__file__).parent / "results" / "kernels-compiled.json"
SIZES = ("64x64", "64x128", "128x128", "128x256", "256x256", "256x512")
WITH_SEGMENTS = "256x512"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPE, ELEMENT = torch.bfloat16, "*bf16"
# What kernels' arguments are, by their names; others are 32-bit numbers.
POINTERS = dict.fromkeys(("a", "b", "c", "states", "out"), ELEMENT)
POINTERS |= dict.fromkeys(("log2_decay", "first", "last"), "*fp32") | {"runs": "*i32"}
STEP_POINTERS = dict.fromkeys(("q", "k", "states", "keys", "values"), "*fp32")
STEP_POINTERS |= dict.fromkeys(("v", "gate", "out"), ELEMENT)
STEP_POINTERS |= {"rows": "*i64", "counts": "*i32", "log2_decay": "*fp32", "eps": "fp32"}


@dataclass(frozen=True)
class Case:
    """A kernel for a chip: what it is for, its constants, and what Triton is asked for."""

    arch: str
    role: str
    key_size: int
    value_size: int
    kernel: str
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """The case in a few words."""
        return name_of(asdict(self))


def name_of(row: dict[str, Any]) -> str:
    """A case, or what was found of it, in a few words."""
    return f"{row['arch']} {row['role']} {row['key_size']}x{row['value_size']}"


KERNELS = {
    "states": states.states_kernel,
    "outputs": outputs.outputs_kernel,
    "step": step.step_kernel,
    "deferred": step.deferred_kernel,
    "flush": step.flush_kernel,
}


def cases(archs: list[str], sizes: list[str]) -> Iterator[Case]:
    """Everything that is shipped, in bf16; with segments, heads of one size."""
    for arch, size in itertools.product(archs, sizes):
        keys, values = map(int, size.split("x"))
        yield from _chunkwise(arch, keys, values, has_runs=False)
        if size == WITH_SEGMENTS:
            yield from _chunkwise(arch, keys, values, has_runs=True)
        for kernel, constants, num_warps in decode.launches(keys, values):
            yield Case(arch, kernel, keys, values, kernel, constants, num_warps, 2)


def _chunkwise(arch: str, keys: int, values: int, *, has_runs: bool) -> Iterator[Case]:
    """The chunkwise form and its gradients."""
    kernel: Kernel
    for role, rows, columns, flags in (
        ("states", keys, values, {"REVERSE": False}),
        ("gradients of states", keys, values, {"REVERSE": True}),
        ("o", keys, values, {"TURNED": False, "REVERSE": False}),
        ("dq", values, keys, {"TURNED": True, "REVERSE": False}),
        ("dk", values, keys, {"TURNED": True, "REVERSE": True}),
        ("dv", keys, values, {"TURNED": False, "REVERSE": True}),
    ):
        kernel = "outputs" if "TURNED" in flags else "states"
        config = config_for(arch, kernel, rows, columns, DTYPE)
        constants = {
            "P": rows,
            "N": columns,
            "SUPER": super_chunk(8192, 16),
            "CHUNK": config.chunk,
            "BLOCK_P": config.block_p,
            "BLOCK_N": config.block_n,
            "HAS_RUNS": has_runs,
            "UPCAST": False,
            **flags,
        }
        name = f"{role}, segments" if has_runs else role
        yield Case(arch, name, keys, values, kernel, constants, config.num_warps, config.num_stages)


def compiled(case: Case) -> dict[str, Any]:
    """What a case takes: registers of a thread, bytes spilt by it, shared bytes of a block, and the
    instructions of its tensor cores.
    """
    kernel = KERNELS[case.kernel]
    pointers = POINTERS if case.kernel in ("states", "outputs") else STEP_POINTERS
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
            constants[place,] = case.constants[name]
            continue
        signature[name] = pointers.get(name, "i32")
        if signature[name].startswith("*") or name.endswith(("_row", "_token", "_head")):
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **FUSED}
    found = triton.compile(source, target=TARGETS[case.arch], options=options)
    usage = _of_nvidia(found.asm["cubin"]) if "cubin" in found.asm else _of_amd(found.asm["amdgcn"])
    return {**asdict(case), **usage, "shared_bytes": found.metadata.shared}


def _of_nvidia(cubin: bytes) -> dict[str, int]:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources, code = (
            subprocess.run(
                [tools / tool, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    numbers = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert numbers is not None, resources
    return {
        "registers": int(numbers[1]),
        "spilt_bytes": int(numbers[2]),
        "tensor_core_instructions": len(re.findall(r"\bHG?MMA\b", code)),
    }


def _of_amd(code: str) -> dict[str, int]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        assert found is not None, name
        return int(found[1])

    return {
        "registers": number("vgpr_count"),
        "spilt_bytes": 4 * number("vgpr_spill_count"),
        "tensor_core_instructions": len(re.findall(r"\bv_mfma_", code)),
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What of a row is beyond its chip."""
    name, found = name_of(row), []
    if row["shared_bytes"] > SHARED_BYTES[row["arch"]]:
        found.append(f"{name}: {row['shared_bytes']:,} shared bytes")
    if row["spilt_bytes"]:
        found.append(f"{name}: {row['spilt_bytes']} bytes spilt")
    if row["kernel"] in ("states", "outputs") and not row["tensor_core_instructions"]:
        found.append(f"{name}: no tensor cores")
    return found


@cache
def sources_hash() -> str:
    """Of the kernels, and of how they are cut up."""
    folder = Path(retnet.ops.triton.__file__).parent
    names = ("common", "configs", "decode", "outputs", "states", "step")
    texts = [(folder / f"{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--archs", nargs="+", choices=TARGETS, default=list(TARGETS))
    add("--sizes", nargs="+", default=list(SIZES), metavar="KxV")
    add("--jobs", type=int, default=os.cpu_count(), help="processes")
    add("--save", action="store_true", help=f"keep it in {RECORD.name}, beside other Tritons'")
    return parser


def main() -> int:
    """Compile, show, and keep; 1 where anything is beyond its chip."""
    arguments = parser().parse_args()
    wanted = list(cases(arguments.archs, arguments.sizes))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(compiled, wanted))
    Console().print(_table(rows))
    if arguments.save:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[triton.__version__] = {"sources": sources_hash(), "rows": rows}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    found = [fault for row in rows for fault in faults(row)]
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"Triton {triton.__version__}, bf16")
    for heading in ("chip", "kernel", "K x V"):
        table.add_column(heading)
    for heading in (
        "warps",
        "registers",
        "spilt bytes",
        "shared bytes",
        "tensor core instructions",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = (
            "num_warps",
            "registers",
            "spilt_bytes",
            "shared_bytes",
            "tensor_core_instructions",
        )
        table.add_row(
            row["arch"],
            row["role"],
            f"{row['key_size']} x {row['value_size']}",
            *(f"{row[name]:,}" for name in counts),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
