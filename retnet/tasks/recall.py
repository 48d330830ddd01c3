"""Four tasks of recall. Each is a frozen dataclass that draws its examples as batches.

A batch is a function of (the settings, batch size, seed, step). Ids 1 ... vocab_size / 2 - 1 are
keys and those from vocab_size / 2 on are values, where a task has such.
"""

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from retnet.loss import IGNORED
from retnet.tasks.draws import Ints, distinct, filler, generator, power_law_places


class Examples(NamedTuple):
    """Some rows of a task.

    tokens: [B, T] int64
    targets: [B, T] int64, the token to be named after each position, IGNORED where none is asked
    """

    tokens: Tensor
    targets: Tensor


class Task(Protocol):
    """Something to learn that can be asked about."""

    @property
    def vocab_size(self) -> int:
        """How many ids its tokens are from."""
        ...

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        """The examples of a step, the same for the same seed."""
        ...


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall:
    """Multi-query associative recall (Arora et al., "Zoology", arXiv:2312.04927).

    Pairs of a key and its value, then every key once more, in an order and at distances that are
    drawn; each time its value is asked for. Queries stand at even places behind the pairs, the
    place 2 x drawn in proportion to (x + 1)^(power - 1). All else is filler.

    Other than Zoology's code, filler that is random never is one of the row's own keys: there one
    row in forty shows a key with something behind it that is not its value (vocabulary 8,192,
    length 64, 4 pairs).

    Attributes:
        length: T.
        num_pairs: pairs of a row; keys differ, and so do values.
        vocab_size: number of ids.
        power: how much nearer queries are likelier; 1 for not at all.
        random_filler: whether filler is random ids or the id 0. The figures in Zoology's paper are
            of 0, as its published settings say.
    """

    length: int = 64
    num_pairs: int = 4
    vocab_size: int = 8192
    power: float = 0.01
    random_filler: bool = True

    def __post_init__(self) -> None:
        _require_least("num_pairs", self.num_pairs, 1)
        _require_least("length", self.length, 4 * self.num_pairs, "4 places for each pair")
        _require(self.length % 2 == 0, f"length must be even, got {self.length}")
        least = 2 * (self.num_pairs + 1)
        _require_least("vocab_size", self.vocab_size, least, "as many keys as pairs, and a blank")
        _require(isfinite(self.power) and self.power > 0, f"power must be > 0, got {self.power!r}")

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        """The examples of a step; see `Task`."""
        rng = generator(seed, step)
        half, size = self.vocab_size // 2, {"num_rows": batch_size, "num_columns": self.num_pairs}
        keys = distinct(rng, 1, half, **size)
        values = distinct(rng, half, self.vocab_size, **size)
        behind = 2 * self.num_pairs
        num_places = (self.length - behind) // 2
        asked = behind + 2 * power_law_places(rng, self.power, num_places=num_places, **size)
        tokens = np.zeros((batch_size, self.length), dtype=np.int64)
        if self.random_filler:
            tokens = filler(rng, self.vocab_size, self.length, keys)
        tokens[:, 0:behind:2], tokens[:, 1:behind:2] = keys, values
        np.put_along_axis(tokens, asked, keys, axis=1)
        return _asking(tokens, asked, values)


@dataclass(frozen=True, kw_only=True)
class Copying:
    """A random string, a separator (the id 0), the string again, all of which is asked for.

    Attributes:
        num_copied: ids in the string; T is twice that, as the last one is not read again.
        vocab_size: number of ids, with the separator.
    """

    num_copied: int = 32
    vocab_size: int = 8192

    def __post_init__(self) -> None:
        _require_least("num_copied", self.num_copied, 1)
        _require_least("vocab_size", self.vocab_size, 2)

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        """The examples of a step; see `Task`."""
        rng = generator(seed, step)
        string = rng.integers(1, self.vocab_size, size=(batch_size, self.num_copied))
        separator = np.zeros((batch_size, 1), dtype=np.int64)
        tokens = np.concatenate([string, separator, string[:, :-1]], axis=1)
        places = np.arange(self.num_copied, 2 * self.num_copied)
        return _asking(tokens, np.broadcast_to(places, string.shape), string)


@dataclass(frozen=True, kw_only=True)
class Induction:
    """Random ids, in whose first half a trigger stands once, and again at the end: what came next?

    Attributes:
        length: T.
        vocab_size: number of ids, any of which may be the trigger of a row.
    """

    length: int = 64
    vocab_size: int = 8192

    def __post_init__(self) -> None:
        _require_least("length", self.length, 3)
        _require_least("vocab_size", self.vocab_size, 2)

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        """The examples of a step; see `Task`."""
        rng = generator(seed, step)
        trigger = rng.integers(self.vocab_size, size=(batch_size, 1))
        place = rng.integers(self.length // 2, size=(batch_size, 1))
        tokens = filler(rng, self.vocab_size, self.length, trigger)
        answer = np.take_along_axis(tokens, place + 1, axis=1)
        np.put_along_axis(tokens, place, trigger, axis=1)
        tokens[:, -1:] = trigger
        return _asking(tokens, np.full_like(place, self.length - 1), answer)


@dataclass(frozen=True, kw_only=True)
class Needle:
    """A needle in a haystack: a key and its value in random ids, and the key again at the end.

    Attributes:
        length: T.
        depth: where the key stands, from 0, the beginning, to 1, as near to the end as may be.
        vocab_size: number of ids.
    """

    length: int = 1024
    depth: float = 0.5
    vocab_size: int = 8192

    def __post_init__(self) -> None:
        _require_least("length", self.length, 3)
        _require_least("vocab_size", self.vocab_size, 4)
        _require(0 <= self.depth <= 1, f"depth must be in [0, 1], got {self.depth!r}")

    @property
    def place(self) -> int:
        """The key's place: `depth` of the way from the first place to the last that leaves room
        for the value and the question.
        """
        return round(self.depth * (self.length - 3))

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        """The examples of a step; see `Task`."""
        rng = generator(seed, step)
        key = rng.integers(1, self.vocab_size // 2, size=(batch_size, 1))
        value = rng.integers(self.vocab_size // 2, self.vocab_size, size=(batch_size, 1))
        tokens = filler(rng, self.vocab_size, self.length, key)
        tokens[:, self.place : self.place + 2] = np.concatenate([key, value], axis=1)
        tokens[:, -1:] = key
        return _asking(tokens, np.full_like(key, self.length - 1), value)


def _asking(tokens: Ints, places: Ints, answers: Ints) -> Examples:
    """Tokens [B, T], asked at places [B, N] for answers [B, N]."""
    targets = np.full_like(tokens, IGNORED)
    np.put_along_axis(targets, places, answers, axis=1)
    return Examples(torch.from_numpy(tokens), torch.from_numpy(targets))


def _require_least(name: str, value: object, least: int, why: str = "") -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
    reason = f" ({why})" if why else ""
    _require(is_count, f"{name} must be an integer >= {least}{reason}, got {value!r}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
