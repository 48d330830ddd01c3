"""On which CPUs torch's products are known to sum a row in the same order among any others, and
where the native kernel, for which that holds on all, can be compiled.
"""

from pathlib import Path

import pytest

from retnet.decoding.native.build import BuildError, find_compiler

_CPUINFO = Path("/proc/cpuinfo")
_IS_KNOWN = _CPUINFO.exists() and "avx512_bf16" in _CPUINFO.read_text()

rows_are_independent = pytest.mark.skipif(
    not _IS_KNOWN,
    reason="how torch's products sum was tried on AMD and Intel with AVX512-BF16 only",
)


def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    try:
        find_compiler()
    except BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
