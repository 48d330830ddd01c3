"""What a state can hold, apart from what a model learns to put there: random keys and values are
written into it, each key is then asked for, and the value nearest to the answer is taken.
"""

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from retnet.ops import retention_parallel
from retnet.tasks.draws import TEST_SEED


def recalled_by_retention(
    key_size: int,
    num_pairs: int,
    *,
    gamma: float,
    num_values: int,
    num_rows: int,
    seed: int,
) -> float:
    """The share of values that a state of retention gives back, of one head with V = 2 K.

    Keys are random unit vectors, and so are the values that are drawn from. All pairs are read,
    then each key once, in their order.

    Args:
        key_size: K. The state has 2 K^2 numbers.
        num_pairs: pairs of a row.
        gamma: the head's decay, by which what was read last weighs more.
        num_values: from how many values the answer is chosen.
        num_rows: rows of pairs, each with a state of its own.
        seed: of keys and values.
    """
    keys, values, chosen = _drawn(key_size, num_pairs, num_values, num_rows, seed)
    written = values[chosen]
    # A query has no value and changes nothing: what is asked for is what the pairs left.
    nothing = torch.zeros_like(written)
    queries = torch.cat([torch.zeros_like(keys), keys], dim=1)[:, :, None]
    tokens = torch.cat([keys, torch.zeros_like(keys)], dim=1)[:, :, None]
    log_decay = torch.tensor([log(gamma)], dtype=torch.float64)
    contents = torch.cat([written, nothing], dim=1)[:, :, None]
    out, _ = retention_parallel(queries, tokens, contents, log_decay)
    return _share(out[:, num_pairs:, 0], values, chosen)


def recalled_by_attention(
    key_size: int, num_pairs: int, *, sharpness: float, num_values: int, num_rows: int, seed: int
) -> float:
    """The same of softmax attention, whose memory is all pairs: what retention is held against.

    sharpness: what products of keys are multiplied by.
    """
    keys, values, chosen = _drawn(key_size, num_pairs, num_values, num_rows, seed)
    weights = (sharpness * keys @ keys.mT).softmax(dim=-1)
    return _share(weights @ values[chosen], values, chosen)


def _drawn(
    key_size: int, num_pairs: int, num_values: int, num_rows: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [rows, pairs, K], all values [values, V], and which of them each key has."""
    rng = torch.Generator().manual_seed(TEST_SEED + seed)
    keys = F.normalize(torch.randn(num_rows, num_pairs, key_size, generator=rng), dim=-1)
    values = F.normalize(torch.randn(num_values, 2 * key_size, generator=rng), dim=-1)
    return keys, values, torch.randint(num_values, (num_rows, num_pairs), generator=rng)


def _share(answers: Tensor, values: Tensor, chosen: Tensor) -> float:
    """The share of answers [rows, pairs, V] to which the chosen of all values is the nearest."""
    return float(((answers @ values.T).argmax(dim=-1) == chosen).double().mean())
