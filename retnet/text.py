"""Text in, text out: prompts to tokens and tokens to characters as they come."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from retnet.generation import SamplingParams, generate
from retnet.model import RetNet


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
    ids = torch.tensor([_document(tokenizer, prompt)], device=device)
    if tokenizer.eos_id is not None:
        stops = (*params.stop_tokens, tokenizer.eos_id)
        params = SamplingParams(**{**vars(params), "stop_tokens": stops})
    tokens = (int(chosen) for chosen in generate(model, ids, params, generator=generator))
    return until_stop(_characters(tokenizer, tokens, params.stop_tokens), params.stop)


def _document(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of the beginning of a document: never none, for a model has to read something."""
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = first + tokenizer.encode(text)
    if not ids and tokenizer.eos_id is not None:  # what ends one document begins the next
        ids = [tokenizer.eos_id]
    if not ids:
        raise ValueError("prompt must not be empty: the tokenizer has no token to begin with")
    return ids


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The text of the pieces up to the first stop string, each part as early as it is sure."""
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.find(stop) + len(stop), stop) for stop in stops if stop in held]
        if found:  # the one that is complete first, however the pieces are cut
            end, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            yield from filter(None, [held[: end - len(stop)]])
            return
        sure = len(held) - _possible_stop(held, stops)
        if sure:
            yield held[:sure]
            held = held[sure:]
    if held:
        yield held


def _characters(
    tokenizer: Tokenizer, tokens: Iterator[int], stop_tokens: Sequence[int]
) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if token in stop_tokens:
            break
        piece = decoder.decode(tokenizer.decode_bytes([token]))
        if piece:
            yield piece
    tail = decoder.decode(b"", final=True)
    if tail:
        yield tail


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
