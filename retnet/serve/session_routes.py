"""/v1/sessions: conversations that clients go on with by name, copy, and take with them as files.

A session is used by giving its name as `session_id` to completions or chat.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import BaseModel, Field, StrictStr
from starlette.requests import ClientDisconnect, Request

from retnet.serve.errors import ApiError
from retnet.serve.protocol import Body
from retnet.serve.session_files import ID_PATTERN, Session
from retnet.serve.sessions import SessionStore

# Files that are read at once: each takes a state's memory, and more while it is checked.
MOST_FILES = 8

_FILE: dict[str, Any] = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such session"}}
_TAKEN: dict[int | str, dict[str, Any]] = {
    409: {"description": "The id is taken, or the session in the middle of a turn"},
    413: {"description": "The session can't be kept: a full disk, say"},
}

# What ids look like is for readers of the schema; the store checks them.
_ID_SCHEMA: dict[str, Any] = {"pattern": f"^{ID_PATTERN}$"}
SessionName = Annotated[str, Path(description="The session's id", json_schema_extra=_ID_SCHEMA)]


class NewSession(Body):
    """A session to be made. id: None for one that nobody guesses."""

    id: Annotated[StrictStr, Field(max_length=64, json_schema_extra=_ID_SCHEMA)] | None = None


class SessionBody(BaseModel):
    """A session.

    created, last_used: Unix seconds; the latter is when it last went on.
    num_tokens: of its text, read or not.
    state_bytes: what it takes, however long the text is.
    busy: whether somebody is going on with it now.
    """

    id: str
    object: Literal["session"] = "session"
    created: int
    last_used: int
    num_tokens: int
    state_bytes: int
    busy: bool


class SessionList(BaseModel):
    """All sessions."""

    object: Literal["list"] = "list"
    data: list[SessionBody]


class DeletedSession(BaseModel):
    """A session that was."""

    id: str
    object: Literal["session"] = "session"
    deleted: Literal[True] = True


def session_router(store: Callable[[], SessionStore]) -> APIRouter:
    """The routes. store: gives the store, or raises an ApiError while there is none."""
    router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
    _add_session_routes(router, store)
    _add_state_routes(router, store)
    return router


def _add_session_routes(router: APIRouter, store: Callable[[], SessionStore]) -> None:
    @router.post("", summary="Make an empty session", status_code=201, responses=_TAKEN)
    async def create_session(body: NewSession | None = None) -> SessionBody:
        return _body(await store().create(None if body is None else body.id))

    @router.get("", summary="All sessions")
    async def list_sessions() -> SessionList:
        return SessionList(data=[_body(session) for session in await store().list_all()])

    @router.get("/{session_id}", summary="A session", responses=_UNKNOWN)
    async def get_session(session_id: SessionName) -> SessionBody:
        return _body(await store().get(session_id))

    @router.delete("/{session_id}", summary="Delete a session", responses=_UNKNOWN | _TAKEN)
    async def delete_session(session_id: SessionName) -> DeletedSession:
        await store().delete(session_id)
        return DeletedSession(id=session_id)

    @router.post(
        "/{session_id}/fork",
        summary="Make a session that goes on from where another stands",
        status_code=201,
        responses=_UNKNOWN | _TAKEN,
    )
    async def fork_session(session_id: SessionName, body: NewSession | None = None) -> SessionBody:
        return _body(await store().fork(session_id, None if body is None else body.id))


def _add_state_routes(router: APIRouter, store: Callable[[], SessionStore]) -> None:
    reading = asyncio.Semaphore(MOST_FILES)

    @router.get(
        "/{session_id}/state",
        summary="A session as a .safetensors file",
        response_class=Response,
        responses=_UNKNOWN | {200: {"content": _FILE, "description": "The file"}},
    )
    async def save_session(session_id: SessionName) -> Response:
        data = await store().to_bytes(session_id)
        headers = {"content-disposition": f'attachment; filename="{session_id}.safetensors"'}
        return Response(data, media_type="application/octet-stream", headers=headers)

    @router.put(
        "/{session_id}/state",
        summary="Make or replace a session by what such a file holds",
        responses=_TAKEN,
        openapi_extra={"requestBody": {"content": _FILE, "required": True}},
    )
    async def restore_session(session_id: SessionName, request: Request) -> SessionBody:
        sessions = store()
        sessions.check_free(session_id)  # before all of a body is read in vain
        async with reading:
            data = await read_state(request, sessions.format.most_bytes)
            return _body(await sessions.from_bytes(session_id, data))


async def read_state(request: Request, most_bytes: int) -> bytes:
    """A body, if it has no more bytes than a session's file may have; ApiError otherwise."""
    too_large = ApiError(
        413,
        f"a session of this model takes at most {most_bytes:,} bytes, and the body is larger; "
        "send what GET gave for the same path",
        code="body_too_large",
    )
    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and (len(stated) > 18 or int(stated) > most_bytes):
        raise too_large
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > most_bytes:
                raise too_large
    except ClientDisconnect:
        raise ApiError(400, "the body is not whole: the client has left") from None
    return bytes(data)


def _body(session: Session) -> SessionBody:
    return SessionBody(
        id=session.id,
        created=session.created,
        last_used=session.last_used,
        num_tokens=session.num_tokens,
        state_bytes=session.state_bytes,
        busy=session.is_busy,
    )
