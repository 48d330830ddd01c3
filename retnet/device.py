"""Where computations run: devices by name, and how many threads of a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def find_device(name: str) -> torch.device:
    """The device of a name; for "auto" cuda where there is one. ValueError if it can't be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {name!r} cannot be used here: {reason}; try 'auto' or 'cpu'"
        ) from error
    return device


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """CPU threads for torch inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
