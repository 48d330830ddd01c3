"""The kernels without a GPU: in Triton's interpreter, which has to be chosen before Triton is
imported. `make test` runs this folder by itself, with TRITON_INTERPRET=1; else it is left out.
"""

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

# The first whose interpreter knows loops of any length.
_OLDEST = (3, 9)


def _is_able() -> bool:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return False
    return tuple(map(int, found.split(".")[:2])) >= _OLDEST


if os.environ.get("TRITON_INTERPRET") != "1" or not _is_able():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody has written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
