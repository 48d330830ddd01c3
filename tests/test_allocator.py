"""Asking the C library to keep freed memory."""

import os
import platform
import subprocess
import sys

import pytest

from retnet.allocator import tune_allocator
from retnet.measure import in_fresh_process

IS_GLIBC = platform.libc_ver()[0] == "glibc"

# The page faults of making, and freeing, a tensor of 64 MB ten times, once the heap has its size.
COUNT_FAULTS = """
import resource
import sys

import torch

if "tune" in sys.argv:
    from retnet.allocator import tune_allocator
    tune_allocator()
for turn in range(30):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str, **environment: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, *arguments]
    return int(subprocess.check_output(command, env={**os.environ, **environment}, text=True))


def test_what_was_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is nothing to do."""
    answer = in_fresh_process(tune_allocator)
    assert answer.tuned == IS_GLIBC
    assert answer.detail.startswith("tuned (glibc" if answer.tuned else "default (")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not tune_allocator().tuned
    assert "no glibc" in tune_allocator().detail


@pytest.mark.skipif(not IS_GLIBC, reason="only glibc can be asked")
def test_freed_memory_is_used_again() -> None:
    """By the call as by the environment variables that its page names; not by default."""
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
    assert page_faults() > 10 * 2**12
    assert page_faults("tune") < 2**12
    assert page_faults(**kept) < 2**12
