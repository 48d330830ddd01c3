"""Sessions over HTTP: typed answers and typed errors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import Response

from retnet.checkpoint import Conversation, StateFormat
from retnet.config import ModelConfig
from retnet.model import RetNet
from retnet.serve.errors import ApiError
from retnet.serve.session_routes import session_router
from retnet.serve.sessions import SessionStore
from tests.disk import full_disk


def make_model(seed: int = 0) -> RetNet:
    config = ModelConfig(vocab_size=64, d_model=32, num_layers=2, num_heads=2)
    return RetNet(config, generator=torch.Generator().manual_seed(seed)).eval()


MODEL = make_model()
FORMAT = StateFormat(MODEL)
with torch.no_grad():
    HELD = Conversation(MODEL(torch.arange(30)[None])[1], (5, 6))
FILE = FORMAT.to_bytes(HELD)


def make_app(store: Callable[[], SessionStore]) -> FastAPI:
    app = FastAPI()
    app.include_router(session_router(store))

    @app.exception_handler(ApiError)
    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return Response(error.encoded(), status_code=error.status, headers=error.headers())

    return app


def asked(
    work: Callable[[httpx.AsyncClient, SessionStore], Awaitable[None]],
    directory: Path | None = None,
) -> None:
    """Do something with a client of a server that has a store."""

    async def run() -> None:
        store = SessionStore(MODEL, directory, 2**30)
        transport = httpx.ASGITransport(make_app(lambda: store))
        async with httpx.AsyncClient(transport=transport, base_url="http://retnet") as client:
            await work(client, store)

    asyncio.run(run())


def assert_error(response: httpx.Response, status: int, code: str | None, says: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert says in error["message"]


@pytest.mark.parametrize("in_folder", [False, True], ids=["memory", "folder"])
def test_a_life(tmp_path: Path, in_folder: bool) -> None:
    async def live(client: httpx.AsyncClient, _: SessionStore) -> None:
        made = await client.post("/v1/sessions", json={"id": "a"})
        assert made.status_code == 201
        session = made.json()
        assert session == {
            "id": "a",
            "object": "session",
            "created": session["created"],
            "last_used": session["created"],
            "num_tokens": 0,
            "state_bytes": 0,
            "busy": False,
        }
        replaced = (await client.put("/v1/sessions/a/state", content=FILE)).json()
        assert (replaced["num_tokens"], replaced["state_bytes"]) == (32, FORMAT.state_bytes)
        assert (await client.get("/v1/sessions/a")).json() == replaced
        fork = await client.post("/v1/sessions/a/fork", json={"id": "B"})
        assert (fork.status_code, fork.json()["num_tokens"]) == (201, 32)
        listed = (await client.get("/v1/sessions")).json()
        assert listed["object"] == "list"
        assert [each["id"] for each in listed["data"]] == ["B", "a"]
        deleted = await client.delete("/v1/sessions/a")
        assert deleted.json() == {"id": "a", "object": "session", "deleted": True}
        assert_error(await client.get("/v1/sessions/a"), 404, "session_not_found", "'a'")

    asked(live, tmp_path if in_folder else None)


def test_ids_are_given() -> None:
    """With an empty body, without one, and with fields that others may know."""

    async def run(client: httpx.AsyncClient, store: SessionStore) -> None:
        first = await client.post("/v1/sessions")
        bodies: list[Any] = [{}, {"id": None}, {"metadata": {"x": 1}}]
        others = [await client.post("/v1/sessions", json=body) for body in bodies]
        forks = [await client.post(f"/v1/sessions/{first.json()['id']}/fork")]
        assert {each.status_code for each in (first, *others, *forks)} == {201}
        assert store.num_sessions == 5

    asked(run)


def test_a_file_goes_from_server_to_server(tmp_path: Path) -> None:
    """To the last bit, and by way of a disk."""

    async def save(client: httpx.AsyncClient, _: SessionStore) -> None:
        await client.put("/v1/sessions/a/state", content=FILE)
        response = await client.get("/v1/sessions/a/state")
        assert response.headers["content-type"] == "application/octet-stream"
        assert 'filename="a.safetensors"' in response.headers["content-disposition"]
        (tmp_path / "a.safetensors").write_bytes(response.content)

    async def restore(client: httpx.AsyncClient, store: SessionStore) -> None:
        data = (tmp_path / "a.safetensors").read_bytes()
        restored = await client.put("/v1/sessions/other/state", content=data)
        assert restored.json()["num_tokens"] == 32
        async with store.turn("other") as turn:
            assert turn.conversation.unread == HELD.unread
            assert turn.conversation.state is not None and HELD.state is not None
            pairs = zip(turn.conversation.state.layers, HELD.state.layers, strict=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in pairs)

    asked(save)
    asked(restore)


def test_files_that_are_refused() -> None:
    async def run(client: httpx.AsyncClient, store: SessionStore) -> None:
        await client.put("/v1/sessions/a/state", content=FILE)
        other = StateFormat(make_model(1)).to_bytes(Conversation(None, (1,)))
        large = bytes(FORMAT.most_bytes + 1)
        for name in ("a", "new"):
            url = f"/v1/sessions/{name}/state"
            for content, says in (
                (b"", "damaged"),
                (b"{}", "damaged"),
                (FILE[:-1], "damaged"),
                (other, "another model"),
            ):
                response = await client.put(url, content=content)
                assert_error(response, 400, "bad_session", says)
            response = await client.put(url, content=large)
            assert_error(response, 413, "body_too_large", "at most")
        assert [each.num_tokens for each in await store.list_all()] == [32]

    asked(run)


def test_a_body_that_never_ends() -> None:
    """It is read as far as a session could go, and no further."""
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 2**16
            yield bytes(2**16)

    async def run(client: httpx.AsyncClient, _: SessionStore) -> None:
        response = await client.put("/v1/sessions/a/state", content=endless())
        assert_error(response, 413, "body_too_large", "at most")
        assert num_sent <= FORMAT.most_bytes + 2**17

    asked(run)


def test_a_client_that_leaves_amid_its_body() -> None:
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        store = SessionStore(MODEL, None, 2**30)
        parts = [
            {"type": "http.request", "body": FILE[:100], "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict[str, Any]:
            return parts.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "PUT",
            "path": "/v1/sessions/a/state",
            "query_string": b"",
            "headers": [],
        }
        await make_app(lambda: store)(scope, receive, send)  # type: ignore[arg-type]
        assert store.num_sessions == 0

    asyncio.run(run())
    assert sent[0]["status"] == 400


def test_ids_that_are_refused() -> None:
    async def run(client: httpx.AsyncClient, store: SessionStore) -> None:
        await client.post("/v1/sessions", json={"id": "a"})
        for name in ("", "..", "a/b", "a b", "-", "\x00", "é"):
            for url in ("/v1/sessions", "/v1/sessions/a/fork"):
                response = await client.post(url, json={"id": name})
                assert_error(response, 400, "bad_session_id", "id must have")
        for name in ("%2e%2e", "a.b", "%00", "a%20b", "%ff", "x" * 65):
            for method, end in (("GET", ""), ("DELETE", ""), ("GET", "/state"), ("PUT", "/state")):
                response = await client.request(method, f"/v1/sessions/{name}{end}")
                assert_error(response, 400, "bad_session_id", "id must have")
        assert store.num_sessions == 1

    asked(run)


def test_conflicts() -> None:
    """A body isn't even read for a session that is in a turn."""

    async def never_asked() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    async def run(client: httpx.AsyncClient, store: SessionStore) -> None:
        await client.post("/v1/sessions", json={"id": "a"})
        again = await client.post("/v1/sessions", json={"id": "a"})
        assert_error(again, 409, "session_exists", "already")
        async with store.turn("a"):
            put = await client.put("/v1/sessions/a/state", content=never_asked())
            for response in (put, await client.delete("/v1/sessions/a")):
                assert_error(response, 409, "session_busy", "middle of a turn")
            assert (await client.get("/v1/sessions/a")).json()["busy"] is True
            assert (await client.post("/v1/sessions/a/fork", json={"id": "b"})).status_code == 201
            assert (await client.get("/v1/sessions/a/state")).status_code == 200
        assert (await client.get("/v1/sessions/a")).json()["busy"] is False
        missing = await client.post("/v1/sessions/none/fork")
        assert_error(missing, 404, "session_not_found", "'none'")

    asked(run)


def test_a_full_disk(tmp_path: Path) -> None:
    async def run(client: httpx.AsyncClient, _: SessionStore) -> None:
        await client.put("/v1/sessions/a/state", content=FILE)
        with full_disk(50):
            for response in (
                await client.post("/v1/sessions"),
                await client.put("/v1/sessions/a/state", content=FORMAT.to_bytes(Conversation())),
                await client.post("/v1/sessions/a/fork"),
            ):
                assert_error(response, 413, "session_storage", "stays as it was")
                assert str(tmp_path) not in response.text
        assert (await client.get("/v1/sessions/a")).json()["num_tokens"] == 32

    asked(run, tmp_path)


def test_a_damaged_file_in_the_folder(tmp_path: Path) -> None:
    async def run(client: httpx.AsyncClient, _: SessionStore) -> None:
        await client.put("/v1/sessions/a/state", content=FILE)
        (tmp_path / "a.safetensors").write_bytes(FILE[:-1])
        for url in ("/v1/sessions/a", "/v1/sessions/a/state"):
            response = await client.get(url)
            assert_error(response, 400, "bad_session", "damaged")
            assert str(tmp_path) not in response.text
        assert (await client.get("/v1/sessions")).json()["data"] == []
        assert (await client.put("/v1/sessions/a/state", content=FILE)).status_code == 200

    asked(run, tmp_path)


def test_while_the_model_loads() -> None:
    def no_store() -> SessionStore:
        raise ApiError(503, "the model is still being loaded", kind="server_error")

    async def run() -> None:
        transport = httpx.ASGITransport(make_app(no_store))
        async with httpx.AsyncClient(transport=transport, base_url="http://retnet") as client:
            assert (await client.get("/v1/sessions")).status_code == 503
            assert (await client.put("/v1/sessions/a/state", content=FILE)).status_code == 503

    asyncio.run(run())


def test_the_schema() -> None:
    """Each route has a name of its own and says what it gives."""

    def no_store() -> SessionStore:
        raise AssertionError

    schema = make_app(no_store).openapi()
    operations = [each for path in schema["paths"].values() for each in path.values()]
    assert len({each["operationId"] for each in operations}) == len(operations) == 7
    assert all(each["summary"] and each["tags"] == ["sessions"] for each in operations)
    state = schema["paths"]["/v1/sessions/{session_id}/state"]
    assert "application/octet-stream" in state["get"]["responses"]["200"]["content"]
    assert "application/octet-stream" in state["put"]["requestBody"]["content"]
    assert set(schema["components"]["schemas"]) >= {"SessionBody", "SessionList", "DeletedSession"}
