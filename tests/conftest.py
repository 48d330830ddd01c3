"""What all tests share: seeded randomness, one thread a worker, hypothesis cases that repeat."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile(
    "explore", deadline=None
)  # new cases: pytest --hypothesis-profile explore
settings.load_profile("repeatable")


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    """A generator that starts every test from the same seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Published data sets, which the project doesn't ship: the folder that RETNET_DATA names.

    What needs them is skipped where they are missing.
    """
    directory = Path(os.environ.get("RETNET_DATA", "nowhere"))
    if not directory.is_dir():
        pytest.skip("no data sets here; RETNET_DATA names their folder")
    return directory


@pytest.fixture
def stand_in_for_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchscale imports a function of timm, which brings gigabytes, and never calls it."""
    for name in ("timm", "timm.models", "timm.models.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules["timm.models.layers"])["drop_path"] = lambda x, *_: x
