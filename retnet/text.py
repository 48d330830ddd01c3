"""Text in, text out: prompts to tokens and tokens to characters as they come."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from retnet.generation import generate
from retnet.model import RetNet
from retnet.sampling import SamplingParams


class Tokenizer(Protocol):
    """What turns text into tokens and back."""

    @property
    def bos_id(self) -> int | None:
        """The token that stands before a document; None where none does."""

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document; None where none does."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without bos or eos."""

    def encode_within(self, text: str) -> list[int]:
        """The same for a text that stands behind others: some tokenizers put a space before the
        first.
        """

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that ids stand for, which may end inside a character."""


def complete(
    model: RetNet,
    tokenizer: Tokenizer,
    prompt: str,
    params: SamplingParams,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """The continuation of a prompt, in pieces as they come; joined, they are the text.

    A character whose bytes have not all come is held back, and so is what may be the beginning of a
    stop string. The text ends before the first stop string, at a token of end, or at the limit. An
    empty prompt begins a document; ValueError where the tokenizer has no token for that.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([document_ids(tokenizer, prompt)], device=device)
    if tokenizer.eos_id is not None:
        stops = (*params.stop_tokens, tokenizer.eos_id)
        params = replace(params, stop_tokens=stops)
    text = TextStream(tokenizer, params.stop)
    for (token,) in generate(model, ids, params, generator=generator):
        if int(token) in params.stop_tokens:
            break
        yield from filter(None, [text.push(int(token))])
        if text.is_stopped:
            return
    yield from filter(None, [text.finish()])


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of the beginning of a document: never none, for a model has to read something."""
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = first + tokenizer.encode(text)
    if not ids and tokenizer.eos_id is not None:  # what ends one document begins the next
        ids = [tokenizer.eos_id]
    if not ids:
        raise ValueError("prompt must not be empty: the tokenizer has no token to begin with")
    return ids


class TextStream:
    """The text of tokens that are pushed one by one, each part as early as it is sure.

    A character whose bytes have not all come is held back, and so is what may be the beginning of a
    stop string. What `push` and `finish` return, joined, doesn't depend on how text falls into
    tokens.

    Attributes:
        num_characters: those of the tokens so far, sure or not, without half ones.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._until_stop = UntilStop(stops)
        self.num_characters = 0

    @property
    def is_stopped(self) -> bool:
        """Whether the text has met a stop string; it ends before it."""
        return self._until_stop.is_stopped

    @property
    def is_whole(self) -> bool:
        """Whether no character waits for the rest of its bytes."""
        return not self._decoder.getstate()[0]

    def push(self, token: int) -> str:
        """The text that is sure since this token came."""
        return self._pass(self._decoder.decode(self._tokenizer.decode_bytes([token])))

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return self._pass(self._decoder.decode(b"", final=True)) + self._until_stop.finish()

    def _pass(self, characters: str) -> str:
        self.num_characters += len(characters)
        return self._until_stop.push(characters)


class UntilStop:
    """Text up to the first stop string, each part as early as it is sure.

    Attributes:
        is_stopped: whether a stop string has come; nothing follows then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.is_stopped = False

    def push(self, piece: str) -> str:
        """The text that is sure since this piece came."""
        if self.is_stopped:
            return ""
        held = self._held + piece
        found = [(held.find(stop) + len(stop), stop) for stop in self._stops if stop in held]
        if found:  # the one that is complete first, however the pieces are cut
            end, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            self.is_stopped, self._held = True, ""
            return held[: end - len(stop)]
        sure = len(held) - _possible_stop(held, self._stops)
        self._held = held[sure:]
        return held[:sure]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _possible_stop(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of text that begins a stop string."""
    return max(
        (
            size
            for stop in stops
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ),
        default=0,
    )
