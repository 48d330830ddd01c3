"""What a decoder is asked to read in a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """Tokens for some rows of a state.

    tokens: [N] int64, those of a row one after the other.
    rows: [B] int64, which read them, all different.
    counts: [B] how many each of them reads, at least 1, N together.
    wanted: [M] after which tokens, by their places in `tokens`, scores are wanted.
    """

    tokens: Tensor
    rows: Tensor
    counts: tuple[int, ...]
    wanted: tuple[int, ...]

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        rows: Tensor,
        counts: Sequence[int] | None,
        wanted: Sequence[int] | None,
    ) -> "Reading":
        """Without counts each row reads one token; else scores are wanted after each row's last.

        Raises:
            ValueError: for what doesn't fit together.
        """
        for name, x in (("tokens", tokens), ("rows", rows)):
            if x.dim() != 1 or x.dtype != torch.int64 or not len(x):
                raise ValueError(
                    f"{name} must be int64, one-dimensional and not empty, got {x.dtype} "
                    f"{list(x.shape)}"
                )
        each = tuple(counts) if counts is not None else (1,) * len(rows)
        if len(each) != len(rows) or min(each) < 1 or sum(each) != len(tokens):
            raise ValueError(
                "counts must be at least 1 for each row and sum to the number of tokens, got "
                f"{_short(each)} for {len(rows)} rows and {len(tokens)} tokens"
            )
        places = tuple(wanted) if wanted is not None else tuple(end - 1 for end in accumulate(each))
        if places and not 0 <= min(places) <= max(places) < len(tokens):
            raise ValueError(f"wanted must be in [0, {len(tokens)}), got {_short(places)}")
        return cls(tokens, rows, each, places)


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"[{shown}, ...]" if len(numbers) > 8 else f"[{shown}]"
