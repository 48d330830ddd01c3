"""POST /v1/completions."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request as HttpRequest

from retnet.checkpoint import Conversation
from retnet.serve.answers import Pieces
from retnet.serve.asking import Server, Usage, require_model, respond, seed_of
from retnet.serve.errors import ApiError
from retnet.serve.names import token_name, top_names
from retnet.serve.protocol import CompletionRequest, Ends
from retnet.serve.request import Request, TokenLogprob
from retnet.serve.service import Loaded
from retnet.serve.writing import Piece
from retnet.text import TextStream, Tokenizer


def completion_router(server: Server) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions", summary="Go on with texts")
    async def completions(body: CompletionRequest, request: HttpRequest) -> Response:
        loaded = server.service.open()
        _check(body)
        require_model(body.model, loaded)
        asked = _Asked(server, loaded, body)
        if body.session_id is not None:
            pieces = asked.in_session(body.session_id)
        else:
            pieces = await asked.alone()
        return await respond(request, pieces, _Shape(asked), body, asked.usage)

    return router


def _check(body: CompletionRequest) -> None:
    """ApiError for what can't be asked together, or at all."""
    if not body.prompts:
        raise ApiError(400, "prompt must not be an empty list", param="prompt")
    if body.suffix:
        raise ApiError(400, "suffix is not supported: a text is written to its end", param="suffix")
    if body.best_of not in (None, body.num_choices):
        raise ApiError(400, "best_of is not supported but as n", param="best_of")
    most = 128
    if len(body.prompts) * body.num_choices > most:
        raise ApiError(400, f"at most {most} texts at once: prompts times n", param="n")
    if body.session_id is not None:
        if len(body.prompts) > 1 or body.num_choices > 1:
            raise ApiError(400, "a session goes on with one prompt, and n 1", param="session_id")
        if body.echo and body.logprobs is not None:
            raise ApiError(400, "logprobs of prompts are not given in a session", param="echo")


class _Asked:
    """A client's request, with the prompts' tokens once they are known."""

    def __init__(self, server: Server, loaded: Loaded, body: CompletionRequest) -> None:
        self._server, self.loaded, self.body = server, loaded, body
        eos = loaded.tokenizer.eos_id
        self._params = server.params(body, body.max_tokens, Ends(() if eos is None else (eos,)))
        self._answering = server.answering(loaded)
        self.prompts: list[list[int]] = []
        self.usage = Usage(body.num_choices)

    async def alone(self) -> Pieces:
        """The pieces of texts from their beginnings."""
        for prompt in self.body.prompts:
            ids = await self.loaded.encode(prompt) if isinstance(prompt, str) else prompt
            self._note(ids)
        requests = [
            self._request(tuple(ids), choice)
            for ids in self.prompts
            for choice in range(self.body.num_choices)
        ]
        return self._answering.all_of(requests)

    def in_session(self, session_id: str) -> Pieces:
        """The pieces of a text that goes on in a session."""

        async def make(before: Conversation) -> tuple[Request, int]:
            [prompt] = self.body.prompts
            if isinstance(prompt, str):
                prompt = await self.loaded.encode(prompt, begins=before.num_tokens == 0)
            self._note(prompt)
            return self._request((*before.unread, *prompt), 0, before), len(prompt)

        return self._answering.in_session(session_id, make)

    def prompt_of(self, index: int) -> tuple[list[int], str]:
        """Tokens and text of the prompt that a choice answers."""
        number = index // self.body.num_choices
        ids, given = self.prompts[number], self.body.prompts[number]
        return ids, given if isinstance(given, str) else self.loaded.tokenizer.decode(ids)

    def _note(self, ids: list[int]) -> None:
        self._server.require_length(ids)
        self.prompts.append(ids)
        self.usage.num_prompt += len(ids)

    def _request(
        self, prompt: tuple[int, ...], choice: int, before: Conversation | None = None
    ) -> Request:
        if not prompt:
            raise ApiError(
                400, "prompt holds no tokens: there is nothing to go on from", param="prompt"
            )
        return Request(
            prompt=prompt,
            params=self._params,
            seed=seed_of(self.body, choice),
            num_logprobs=self.body.logprobs,
            prompt_logprobs=bool(self.body.echo) and self.body.logprobs is not None,
            state=None if before is None else before.state,
            returns_state=before is not None,
        )


class _Shape:
    """OpenAI's text_completion."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.loaded.id,
        }

    def head(self, *, is_chunk: bool) -> dict[str, Any]:
        """The same for both."""
        return self._head

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A part of a choice."""
        return self.choice(index, [piece])

    def choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Some of a choice's pieces, or all."""
        text = "".join(piece.text for piece in pieces)
        echoes = bool(self._asked.body.echo)
        if echoes and pieces[0].prompt is not None:
            text = self._asked.prompt_of(index)[1] + text
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, pieces, echoes),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _logprobs(
        self, index: int, pieces: Sequence[Piece], echoes: bool
    ) -> dict[str, list[Any]] | None:
        if self._asked.body.logprobs is None:
            return None
        tokenizer = self._asked.loaded.tokenizer
        listed = _Logprobs(tokenizer)
        start = 0
        if echoes:
            ids, text = self._asked.prompt_of(index)
            start = len(text)
            if pieces[0].prompt is not None:
                listed.add_prompt(ids, pieces[0].prompt.logprobs)
        for piece in pieces:
            if piece.token is not None:
                listed.add(piece.token, piece.logprob, start + piece.offset)
        return listed.body


class _Logprobs:
    """OpenAI's four lists."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.body: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }

    def add(self, token: int, logprob: TokenLogprob | None, offset: int) -> None:
        """A token; the first of a text has no logprob."""
        self.body["tokens"].append(token_name(self._tokenizer, token))
        self.body["token_logprobs"].append(None if logprob is None else logprob.logprob)
        top = None if logprob is None else top_names(self._tokenizer, logprob)
        self.body["top_logprobs"].append(top)
        self.body["text_offset"].append(offset)

    def add_prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> None:
        """The tokens of a prompt."""
        stream = TextStream(self._tokenizer)
        for token, logprob in zip(ids, logprobs, strict=True):
            self.add(token, logprob, stream.num_characters)
            stream.push(token)
