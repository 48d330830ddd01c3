"""The tests of the kernels would notice: each of these faults, put into them, is found."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from triton.runtime.errors import InterpreterError

import retnet.ops.triton
from retnet.ops.triton import chunkwise, decode
from tests.triton.cases import Case, chunkwise_errors, decode_errors

KERNELS = Path(retnet.ops.triton.__file__).parent


class Mutant(NamedTuple):
    """A fault: the file, what stands there, and what would be wrong."""

    file: str
    right: str
    wrong: str


MUTANTS = {
    "keys enter a token too late": Mutant("states", "else end - 1 - t)", "else end - t)"),
    "gradients enter a token too early": Mutant("states", "t - start + 1 if", "t - start if"),
    "the state forgets a token less": Mutant("states", "lg, end - start)", "lg, end - start - 1)"),
    "the state never forgets": Mutant("states", "state *= carried", "state *= 1.0"),
    "gradients go forward": Mutant("states", "num_super - 1 - step if REVERSE", "step if REVERSE"),
    "states cross segments": Mutant("states", "tl.where(before == after, carried, 0.0)", "carried"),
    "keys of other segments enter": Mutant(
        "states", "enters & (run == (before if REVERSE else after))", "enters"
    ),
    "a token doesn't see itself": Mutant("outputs", "sees = ahead >= 0", "sees = ahead > 0"),
    "a token sees its chunk's future": Mutant(
        "outputs", "sees = ahead >= 0", "sees = t[:, None] >= 0"
    ),
    "states are read a token early": Mutant("outputs", "else t - start + 1)", "else t - start)"),
    "gradients are read a token late": Mutant("outputs", "lg, end - 1 - t if", "lg, end - t if"),
    "between chunks a token is lost": Mutant("outputs", "else edge - s)", "else edge - s - 1)"),
    "to the edge a token is lost": Mutant("outputs", "lg, edge - t if", "lg, edge - t - 1 if"),
    "the first chunk is left out": Mutant(
        "outputs", "REVERSE else start, end", "REVERSE else start + CHUNK, end"
    ),
    "the last chunk is left out": Mutant(
        "outputs", "start, end if REVERSE", "start, end - CHUNK if REVERSE"
    ),
    "super-chunks begin at chunks": Mutant("outputs", "start = index * SUPER", "start = t0"),
    "states of other segments are read": Mutant(
        "outputs", "tl.where(run == read, reads, 0.0)", "reads"
    ),
    "other segments are seen": Mutant(
        "outputs", "tl.where(run[:, None] == other[None, :], scores, 0.0)", "scores"
    ),
    "the tail is not masked": Mutant("common", "(row < num_rows)[:, None]", "(row >= 0)[:, None]"),
    "columns are not masked": Mutant(
        "common", "(column < num_columns)[None, :]", "(column >= 0)[None, :]"
    ),
    "a step forgets nothing": Mutant("step", "gamma * load_tile", "load_tile"),
    "a step reads before it writes": Mutant(
        "step",
        "query[:, None] * state, axis=0)\n    _finish",
        "query[:, None] * (state - key[:, None] * value[None, :]), axis=0)\n    _finish",
    ),
    "the deferred state is a token young": Mutant(
        "step", "power(lg, count + 1)", "power(lg, count)"
    ),
    "the ring is a token young": Mutant(
        "step", "power(lg, count - j), 0.0", "power(lg, count - 1 - j), 0.0"
    ),
    "the ring is flushed a token old": Mutant(
        "step", "power(lg, count - 1 - j) *", "power(lg, count - j) *"
    ),
    "the norm counts its padding": Mutant(
        "step", "axis=0) / N\n    return", "axis=0) / x.shape[0]\n    return"
    ),
    "the gate has no swish": Mutant("step", "* gate * tl.sigmoid(gate)", "* gate"),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the kernels as a package of its own name, to be changed before it is imported."""
    name = f"mutant_{tmp_path.name}".replace("-", "_")
    folder = shutil.copytree(KERNELS, tmp_path / name)
    for path in folder.glob("*.py"):
        text = path.read_text().replace("retnet.ops.triton", name)
        path.write_text(text.replace('"retnet::', f'"{name}::'))
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


def is_faulty(chunkwise: ModuleType, decode: ModuleType) -> bool:
    """Whether anything is further from the truth than rounding."""
    checks = (
        lambda: decode_errors(decode, "none"),
        lambda: decode_errors(decode, "layernorm"),
        lambda: chunkwise_errors(chunkwise, Case(130, batch=1)),
        lambda: chunkwise_errors(chunkwise, Case(200, batch=1, segments=3, gammas=(0.99,))),
    )
    try:
        return any(not each <= 1e-6 for check in checks for each in check().values())
    except InterpreterError:  # such as of an overflow
        return True


def test_the_kernels_have_no_fault() -> None:
    assert not is_faulty(chunkwise, decode)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_found(name: str, package: Path) -> None:
    mutant = MUTANTS[name]
    path = package / f"{mutant.file}.py"
    text = path.read_text()
    assert mutant.right in text
    path.write_text(text.replace(mutant.right, mutant.wrong))
    changed = (
        importlib.import_module(f"{package.name}.{each}") for each in ("chunkwise", "decode")
    )
    assert is_faulty(*changed)
