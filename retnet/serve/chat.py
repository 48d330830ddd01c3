"""POST /v1/chat/completions."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request as HttpRequest

from retnet.checkpoint import Conversation
from retnet.data.chat_template import ChatTemplate
from retnet.serve.answers import Pieces
from retnet.serve.asking import Server, Usage, require_model, respond, seed_of
from retnet.serve.errors import ApiError
from retnet.serve.names import token_name
from retnet.serve.protocol import ChatRequest, Ends
from retnet.serve.request import Request, TokenLogprob
from retnet.serve.service import Loaded
from retnet.serve.writing import Piece
from retnet.text import Tokenizer


def chat_router(server: Server) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="Answer in a conversation")
    async def chat(body: ChatRequest, request: HttpRequest) -> Response:
        loaded = server.service.open()
        require_model(body.model, loaded)
        asked = _Asked(server, loaded, body)
        pieces = asked.alone() if body.session_id is None else asked.in_session(body.session_id)
        return await respond(request, pieces, _Shape(loaded, body), body, asked.usage)

    return router


class _Asked:
    """A client's request."""

    def __init__(self, server: Server, loaded: Loaded, body: ChatRequest) -> None:
        if body.session_id is not None and body.num_choices > 1:
            raise ApiError(400, "a session goes on with n 1", param="n")
        self._server, self._loaded, self._body = server, loaded, body
        self._template = _template(loaded)
        self._messages = [message.flat() for message in body.messages]
        most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        self._params = server.params(body, most, Ends(self._template.stop_ids, self._template.stop))
        self._answering = server.answering(loaded)
        self.usage = Usage(body.num_choices)

    def alone(self) -> Pieces:
        """The pieces of answers to a whole conversation."""
        ids = self._ids(goes_on=False)
        choices = range(self._body.num_choices)
        return self._answering.all_of([self._request(tuple(ids), choice) for choice in choices])

    def in_session(self, session_id: str) -> Pieces:
        """The pieces of an answer to new messages in a conversation that is kept."""

        async def make(before: Conversation) -> tuple[Request, int]:
            ids = self._ids(goes_on=before.num_tokens > 0)
            return self._request((*before.unread, *ids), 0, before), len(ids)

        return self._answering.in_session(session_id, make)

    def _ids(self, *, goes_on: bool) -> list[int]:
        try:
            rendered = self._template.next_ids if goes_on else self._template.ids
            ids = rendered(self._messages)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None
        self._server.require_length(ids)
        self.usage.num_prompt += len(ids)
        return ids

    def _request(
        self, prompt: tuple[int, ...], choice: int, before: Conversation | None = None
    ) -> Request:
        body = self._body
        return Request(
            prompt=prompt,
            params=self._params,
            seed=seed_of(body, choice),
            num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            state=None if before is None else before.state,
            returns_state=before is not None,
        )


def _template(loaded: Loaded) -> ChatTemplate:
    if loaded.template is None:
        raise ApiError(
            400,
            f"the model {loaded.id!r} has no chat template in its tokenizer's files; "
            "use /v1/completions",
            code="no_chat_template",
        )
    return loaded.template


class _Shape:
    """OpenAI's chat.completion and its chunks."""

    def __init__(self, loaded: Loaded, body: ChatRequest) -> None:
        self._tokenizer, self._body = loaded.tokenizer, body
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": loaded.id,
        }

    def head(self, *, is_chunk: bool) -> dict[str, Any]:
        """What all of it begins with."""
        return {"object": "chat.completion.chunk" if is_chunk else "chat.completion", **self._head}

    def choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A whole message."""
        content = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._logprobs(pieces),
            "finish_reason": pieces[-1].finish_reason,
        }

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of a message; the first one says whose it is."""
        role = {} if piece.prompt is None else {"role": "assistant"}
        return {
            "index": index,
            "delta": {**role, "content": piece.text},
            "logprobs": self._logprobs([piece]),
            "finish_reason": piece.finish_reason,
        }

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        given = [piece.logprob for piece in pieces if piece.logprob is not None]
        return {"content": [_entry(self._tokenizer, each) for each in given], "refusal": None}


def _entry(tokenizer: Tokenizer, logprob: TokenLogprob) -> dict[str, Any]:
    return {
        **_token(tokenizer, logprob.token, logprob.logprob),
        "top_logprobs": [_token(tokenizer, *each) for each in logprob.top],
    }


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_name(tokenizer, token),
        "logprob": logprob,
        "bytes": list(tokenizer.decode_bytes([token])),
    }
