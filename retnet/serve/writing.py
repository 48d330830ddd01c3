"""A text that is being written: what the engine gives for a request, as characters."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from retnet.serve.errors import ApiError
from retnet.serve.request import Finish, Output, PromptRead, Request, TokenLogprob
from retnet.serve.worker import AsyncEngine, EngineStoppedError, QueueFullError
from retnet.text import TextStream, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What a token adds to a text, or none: an end without one.

    Attributes:
        text: what is sure since it came; characters and possible stop strings are held back.
        token: its id; None at an end without one.
        logprob: how likely it was, if asked for.
        offset: whole characters written before it.
        prompt: with the first piece.
        output: with the last one, what the engine said.
        finish_reason: with the last one; "stop" at a stop token or string.
    """

    text: str = ""
    token: int | None = None
    logprob: TokenLogprob | None = None
    offset: int = 0
    prompt: PromptRead | None = None
    output: Output | None = None
    finish_reason: FinishReason | None = None


async def write(
    engine: AsyncEngine, tokenizer: Tokenizer, request: Request, deadline_s: float
) -> AsyncGenerator[Piece, None]:
    """The pieces of what comes of a request; closing it earlier ends the request.

    deadline_s: on the event loop's clock, when to give up.

    Raises:
        ApiError: where the request can't be served, or is given up.
    """
    text = TextStream(tokenizer, request.params.stop)
    try:
        async with aclosing(engine.stream(request)) as outputs:
            while True:
                async with asyncio.timeout_at(deadline_s):
                    output = await anext(outputs)
                piece = _piece(output, text)
                yield piece
                if piece.finish_reason is not None:
                    return
    except TimeoutError:
        raise ApiError(
            408, "the answer took longer than this server allows; ask for less", code="timeout"
        ) from None
    except QueueFullError as error:
        raise ApiError(
            429, str(error), kind="rate_limit_error", code="queue_full", retry_after_s=1
        ) from None
    except EngineStoppedError as error:
        raise unavailable(str(error)) from None
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def unavailable(message: str) -> ApiError:
    """The server can't serve now; another one, or this one later, might."""
    return ApiError(503, message, kind="server_error", code="unavailable", retry_after_s=5)


def _piece(output: Output, text: TextStream) -> Piece:
    if output.finish == Finish.FAILED:
        raise ApiError(
            500,
            "the model gave scores that are not numbers; its weights are broken, or the state is",
            kind="server_error",
        )
    if output.finish == Finish.ABORTED:
        raise unavailable("the server is stopping")
    offset, shown, reason = text.num_characters, "", _reason(output)
    if output.token is not None and reason != "stop":
        shown = text.push(output.token)
    if text.is_stopped:
        reason = "stop"
    elif reason is not None:
        shown += text.finish()
    return Piece(
        shown,
        output.token,
        output.logprob,
        offset,
        output.prompt,
        None if reason is None else output,
        reason,
    )


def _reason(output: Output) -> FinishReason | None:
    if output.finish is None:
        return None
    return "stop" if output.finish == Finish.STOP else "length"
