"""How kernels are cut up, by the chip, the sizes and the type: a table, for nothing is tuned at run
time.

`RETNET_TRITON_CONFIGS` names a JSON file whose entries come first, to try others:
{"sm_90 outputs 256 512 16": {"chunk": 64, "block_p": 64, "block_n": 256, "num_warps": 8,
"num_stages": 3}}. The keys are those of `key`.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from triton import next_power_of_2

Kernel = Literal["states", "outputs"]
OVERRIDE = "RETNET_TRITON_CONFIGS"


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a kernel is cut up.

    chunk: tokens of a tile; block_p, block_n: of the sizes that are summed over, and written (of a
    state: its rows and columns); num_warps, num_stages: what Triton is asked for.
    """

    chunk: int
    block_p: int
    block_n: int
    num_warps: int
    num_stages: int


# Whether products and sums may be fused, which Triton's own default changes with its versions.
FUSED = {"enable_fp_fusion": True}

# Bytes of shared memory that a block may have, by chip.
SHARED_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "gfx90a": 65_536, "gfx942": 65_536}


def super_chunk(tokens: int, bits: int) -> int:
    """Tokens between two states in memory: as many as balance their bytes with the products of the
    tokens between; a power of two, and a multiple of every chunk.
    """
    largest = 256 if bits == 16 else 128
    return max(64, min(largest, next_power_of_2(max(tokens, 1))))


def key(arch: str, kernel: Kernel, rows: int, columns: int, bits: int) -> str:
    """What a table of configurations calls a case."""
    return f"{arch} {kernel} {rows} {columns} {bits}"


def config_for(arch: str, kernel: Kernel, rows: int, columns: int, dtype: torch.dtype) -> Config:
    """The configuration of a kernel whose sums are over `rows` and whose results have `columns`."""
    bits = torch.finfo(dtype).bits
    rows, columns = (max(16, next_power_of_2(size)) for size in (rows, columns))
    chosen = _overrides(os.environ.get(OVERRIDE)).get(key(arch, kernel, rows, columns, bits))
    return chosen or _table(arch, kernel, rows, columns, bits)


def _table(arch: str, kernel: Kernel, rows: int, columns: int, bits: int) -> Config:
    if bits == 32:
        return Config(
            chunk=32, block_p=min(rows, 32), block_n=min(columns, 64), num_warps=4, num_stages=1
        )
    if arch == "sm_90":
        if kernel == "states":
            return Config(
                chunk=64,
                block_p=min(rows, 128),
                block_n=min(columns, 128),
                num_warps=8 if min(rows, columns) >= 128 else 4,
                num_stages=3,
            )
        return Config(
            chunk=64,
            block_p=min(rows, 64),
            block_n=min(columns, 256),
            num_warps=8 if columns >= 256 else 4,
            num_stages=3,
        )
    stages = 2 if arch.startswith("sm") else 1
    return Config(
        chunk=64,
        block_p=min(rows, 64),
        block_n=min(columns, 128 if kernel == "outputs" else 64),
        num_warps=4 if columns < 128 else 8,
        num_stages=stages,
    )


@functools.cache
def _overrides(path: str | None) -> dict[str, Config]:
    if not path:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: Config(**fields) for name, fields in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{OVERRIDE} must name a JSON file of configurations: {error}") from error
