"""On which CPUs torch's products are known to sum a row in the same order among any others."""

from pathlib import Path

import pytest

_CPUINFO = Path("/proc/cpuinfo")
_IS_KNOWN = _CPUINFO.exists() and all(
    word in _CPUINFO.read_text() for word in ("AuthenticAMD", "avx512_bf16")
)

rows_are_independent = pytest.mark.skipif(
    not _IS_KNOWN,
    reason="how many rows torch's products need was tried on AMD with AVX512-BF16 only",
)
