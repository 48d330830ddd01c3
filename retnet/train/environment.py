"""What a run sets up in torch: its share of the global randomness."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def separate_randomness(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were before."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


def seed_dropout(seed: int, *numbers: int) -> None:
    """Make the global generators a function of some numbers >= 0: dropout draws from no other."""
    mixed = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))
