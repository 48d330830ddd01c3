"""The GPU kernels for every chip of the table, compiled: the record is of these kernels, and within
the chips' limits. In the interpreter nothing compiles; see tests/triton for what they compute.
"""

import json
import os
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing compiles in the interpreter", allow_module_level=True)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_record() -> None:
    """Of these kernels, of every case, with nothing beyond a chip; for an H200's Triton too."""
    import compile_kernels as script

    record = json.loads(script.RECORD.read_text())
    assert "3.6.0" in record
    names = [case.name for case in script.cases(list(script.TARGETS), list(script.SIZES))]
    for version, found in record.items():
        assert found["sources"] == script.sources_hash(), (
            f"the kernels have changed: compile_kernels.py --save with Triton {version}"
        )
        rows = found["rows"]
        assert [script.name_of(row) for row in rows] == names
        assert [fault for row in rows for fault in script.faults(row)] == []


@pytest.mark.slow
@pytest.mark.parametrize("role", ["o", "dk", "states", "step"])
@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
def test_compiled_now(
    arch: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest heads, with the Triton that is installed."""
    import compile_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (case,) = (each for each in compile_kernels.cases([arch], ["256x512"]) if each.role == role)
    row = compile_kernels.compiled(case)
    assert compile_kernels.faults(row) == []
    assert row["registers"] > 0
