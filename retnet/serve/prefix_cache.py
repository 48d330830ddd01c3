"""States after beginnings of prompts that were read before.

What is kept is what a prompt read from its beginning leaves at the ends of its pieces, bit for bit,
so that a request's result does not depend on whether it was found here.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from retnet.model import RetNetState

# Of a long prompt at most so many states are kept, evenly spread: it must not push out all others.
_KEPT_OF_A_PROMPT = 64


@dataclass(frozen=True)
class Prefix:
    """A beginning of a prompt.

    state: after its num_tokens tokens, one row.
    logits: the scores of the token after it [vocab_size]; None where they were not computed.
    """

    num_tokens: int
    state: RetNetState
    logits: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        logits = self.logits
        return self.state.num_bytes + (0 if logits is None else logits.numel() * 4)


class PrefixCache:
    """The most recently used beginnings of prompts, within so many bytes.

    piece: prompts are read in pieces of so many tokens; a beginning ends with one of them.
    """

    def __init__(self, max_bytes: int, piece: int) -> None:
        self.max_bytes, self.piece = max_bytes, piece
        self.num_bytes = 0
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prefixes)

    def longest(self, prompt: Sequence[int]) -> Prefix | None:
        """The longest beginning of a prompt that is here; the whole prompt only with its logits."""
        for num_tokens, key in reversed(list(self._keys(prompt))):
            found = self._prefixes.get(key)
            if found is not None and (num_tokens < len(prompt) or found.logits is not None):
                self._prefixes.move_to_end(key)
                return found
        return None

    def wants(self, num_tokens: int, prompt: Sequence[int]) -> bool:
        """Whether to keep the state after so many tokens of a prompt, the end of a piece."""
        every = -(-(len(prompt) // self.piece) // _KEPT_OF_A_PROMPT) or 1
        last = num_tokens + self.piece >= len(prompt)
        return self.max_bytes > 0 and (last or num_tokens // self.piece % every == 0)

    def put(self, prompt: Sequence[int], prefix: Prefix) -> None:
        """Keep a beginning of a prompt; others leave for it."""
        key = _key(np.asarray(prompt[: prefix.num_tokens], dtype=np.int64))
        known = self._prefixes.get(key)
        if prefix.num_bytes > self.max_bytes or (known and prefix.logits is None):
            return
        self._drop(key)
        self._prefixes[key] = prefix
        self.num_bytes += prefix.num_bytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._prefixes)))

    def _drop(self, key: bytes) -> None:
        dropped = self._prefixes.pop(key, None)
        self.num_bytes -= 0 if dropped is None else dropped.num_bytes

    def _keys(self, prompt: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """The ends of a prompt's pieces, and the keys of what comes before them."""
        ids = np.asarray(prompt, dtype=np.int64)
        digest = hashlib.sha256()
        for start in range(0, len(ids), self.piece):
            part = ids[start : start + self.piece]
            digest.update(part.tobytes())
            yield start + len(part), digest.copy().digest()


def _key(ids: NDArray[np.int64]) -> bytes:
    return hashlib.sha256(ids.tobytes()).digest()
