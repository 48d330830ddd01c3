"""What completions and chat share: from a client's body to requests for the engine, and counts."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi.responses import JSONResponse, Response
from starlette.requests import Request as HttpRequest

from retnet.sampling import SamplingParams
from retnet.serve.answers import Answering, Pieces
from retnet.serve.errors import ApiError
from retnet.serve.metrics import Metrics
from retnet.serve.protocol import Ends, Sampling
from retnet.serve.service import Loaded, Service
from retnet.serve.streams import DONE, ClientLeftError, EventStream, event, unless_left
from retnet.serve.writing import Piece

_NUM_SEEDS = 2**63
_CLIENT_LEFT = 499  # nginx's; nobody reads it but the metrics


@dataclass(frozen=True)
class Server:
    """What routes are given."""

    service: Service
    metrics: Metrics

    def answering(self, loaded: Loaded) -> Answering:
        """Asks the model, within the time that a request may take from now on."""
        now = asyncio.get_running_loop().time()
        return Answering(loaded, self.metrics, now + self.service.config.timeout_s)

    def params(self, body: Sampling, max_tokens: int | None, ends: Ends) -> SamplingParams:
        """How tokens are chosen; ApiError for more than the server allows."""
        most = self.service.config.max_new_tokens
        if max_tokens is not None and max_tokens > most:
            raise ApiError(
                400,
                f"max_tokens must be at most {most:,} on this server, got {max_tokens:,}",
                param="max_tokens",
            )
        try:
            return body.params(max_tokens, ends)
        except ValueError as error:
            raise ApiError(400, str(error), param=str(error).partition(" ")[0]) from None

    def require_length(self, prompt: Sequence[int]) -> None:
        """ApiError for a prompt longer than the server allows."""
        most = self.service.config.max_prompt_tokens
        if len(prompt) > most:
            raise ApiError(
                400,
                f"the prompt has {len(prompt):,} tokens, this server reads at most {most:,} at a "
                "time; send it in parts to a session",
                code="context_length_exceeded",
            )


def require_model(name: str | None, loaded: Loaded) -> None:
    """ApiError 404 for another model than the one that is served; none named is that one."""
    if name is not None and name != loaded.id:
        raise ApiError(
            404,
            f"there is no model {name[:100]!r} here, only {loaded.id!r}",
            param="model",
            code="model_not_found",
        )


def seed_of(body: Sampling, choice: int) -> int:
    """Of a prompt's choice: the client's and consecutive ones, or drawn."""
    first = secrets.randbelow(_NUM_SEEDS) if body.seed is None else body.seed
    return (first + choice) % _NUM_SEEDS


class Usage:
    """Counts of tokens, of pieces as they come.

    num_choices: texts asked for each prompt.

    Attributes:
        num_prompt: tokens of all prompts.
    """

    def __init__(self, num_choices: int = 1) -> None:
        self.num_prompt, self._num_choices = 0, num_choices
        self._num_generated = self._num_cached = 0

    def count(self, index: int, piece: Piece) -> None:
        """A piece of a choice has come."""
        self._num_generated += piece.token is not None
        if piece.prompt is not None and index % self._num_choices == 0:
            self._num_cached += piece.prompt.num_cached

    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self._num_generated,
            "total_tokens": self.num_prompt + self._num_generated,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }


async def respond(
    request: HttpRequest, pieces: Pieces, shape: "Shape", body: Sampling, usage: Usage
) -> Response:
    """The response that gives a client the pieces, together or as a stream of events.

    Its status is that of what happens up to the first piece.
    """
    try:
        first = await unless_left(request, anext(pieces))
        if body.stream:
            return EventStream(_events(_joined(first, pieces), shape, body, usage))
        texts = await unless_left(request, _collected(_joined(first, pieces), usage))
    except ClientLeftError:
        await pieces.aclose()
        return Response(status_code=_CLIENT_LEFT)
    choices = [shape.choice(index, texts[index]) for index in sorted(texts)]
    whole = {**shape.head(is_chunk=False), "choices": choices, "usage": usage.body()}
    return JSONResponse(whole)


class Shape(Protocol):
    """How an answer looks."""

    def head(self, *, is_chunk: bool) -> dict[str, Any]:
        """What all of it begins with."""

    def choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A choice of the whole answer."""

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A choice of a chunk of a stream."""


async def _joined(first: tuple[int, Piece], rest: Pieces) -> Pieces:
    async with aclosing(rest):
        yield first
        async for each in rest:
            yield each


async def _collected(pieces: Pieces, usage: Usage) -> dict[int, list[Piece]]:
    texts: dict[int, list[Piece]] = {}
    async with aclosing(pieces):
        async for index, piece in pieces:
            usage.count(index, piece)
            texts.setdefault(index, []).append(piece)
    return texts


async def _events(
    pieces: Pieces, shape: Shape, body: Sampling, usage: Usage
) -> AsyncGenerator[bytes, None]:
    head = shape.head(is_chunk=True)
    async with aclosing(pieces):
        async for index, piece in pieces:
            usage.count(index, piece)
            chunk = {**head, "choices": [shape.chunk(index, piece)]}
            if body.usage_on_chunks:
                chunk["usage"] = usage.body()
            if body.usage_on_chunks or _tells(piece):
                yield event(chunk)
    if body.usage_at_end:
        yield event({**head, "choices": [], "usage": usage.body()})
    yield DONE


def _tells(piece: Piece) -> bool:
    """Whether there is anything in a piece for a client."""
    return bool(
        piece.text
        or piece.prompt is not None
        or piece.logprob is not None
        or piece.finish_reason is not None
    )
