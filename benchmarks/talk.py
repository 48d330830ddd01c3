"""How visitors of a server talk with it, and what they expect of its answers."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

# Keys of visitors and their server.
KEY = "the right key"
QUEUE_FULL = 429
GOING_ON = "/v1/completions"


class FoundError(Exception):
    """Something that must not be."""


@dataclass
class Findings:
    """What all visitors have seen.

    failures: in words. sessions: tokens of each that there is. known: the texts of `KNOWN`.
    is_over: visitors go when they have done what they are at.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    deeds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    sessions: dict[str, int] = field(default_factory=dict)
    known: list[dict[int, str]] = field(default_factory=list)
    is_over: bool = False


@asynccontextmanager
async def web(port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the right key, that keeps its connections."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"authorization": f"Bearer {KEY}"},
        timeout=300,
        # Connections are given up before the server does so, just when the next request begins.
        limits=httpx.Limits(max_connections=None, keepalive_expiry=2),
    ) as client:
        yield client


class Talk:
    """A visitor's side of it. name: what its sessions' names begin with."""

    def __init__(self, client: httpx.AsyncClient, findings: Findings, name: str) -> None:
        self.client, self.findings = client, findings
        self._name, self._num_made = name, 0

    async def answered(
        self, path: str, body: dict[str, Any], *, streams: bool
    ) -> list[dict[str, Any]] | None:
        """The answer, or the chunks of its stream; None where the queue is full."""
        if not streams:
            reply = await self.client.post(path, json=body)
            if reply.status_code == QUEUE_FULL:
                self._refuse(reply)
                return None
            return [self.expect(reply, 200).json()]
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
            if response.status_code == QUEUE_FULL:
                self._refuse(response)
                return None
            if response.status_code != 200:
                self.expect(response, 200)
            self.count(200)
            lines = [line async for line in response.aiter_lines() if line]
        if lines[-1] != "data: [DONE]" or any('"error"' in line[:10] for line in lines):
            raise FoundError(f"{body} streamed {lines[-1]!r}"[:500])
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def _refuse(self, reply: httpx.Response) -> None:
        self.expect(reply, QUEUE_FULL)
        if not reply.headers.get("retry-after"):
            raise FoundError("a full queue doesn't say when to come again")

    def expect(self, reply: httpx.Response, *statuses: int) -> httpx.Response:
        """The reply if its status is one of those; an error must look like one."""
        self.count(reply.status_code)
        asked = f"{reply.request.method} {reply.request.url.path}"
        self.expect_status(reply.status_code, statuses, f"{asked}: {reply.text[:300]}")
        if reply.status_code >= 400 and set(reply.json()["error"]) != {
            "message",
            "type",
            "param",
            "code",
        }:
            raise FoundError(f"{asked}: {reply.text[:300]}")
        return reply

    def expect_status(self, status: int, expected: int | Sequence[int], what: str) -> None:
        """Nothing, if the status is what is expected."""
        if status not in ((expected,) if isinstance(expected, int) else expected):
            raise FoundError(f"{status}, not {expected}: {what}")

    def count(self, status: int) -> int:
        """The status, which is noted."""
        self.findings.statuses[status] += 1
        return status

    async def create(self) -> str:
        """The name of a new session."""
        name = self.new_name()
        self.expect(await self.client.post("/v1/sessions", json={"id": name}), 201)
        self.findings.sessions[name] = 0
        return name

    async def delete(self, name: str) -> None:
        """Delete a session; a turn that was cut a moment ago may still be in it."""
        await self._free(name)
        self.expect(await self.client.delete(f"/v1/sessions/{name}"), 200)
        del self.findings.sessions[name]

    async def num_tokens(self, name: str) -> int:
        """Those of a session, once nobody is in it."""
        await self._free(name)
        told = self.expect(await self.client.get(f"/v1/sessions/{name}"), 200).json()
        num_tokens = told["num_tokens"]
        assert isinstance(num_tokens, int)
        return num_tokens

    async def _free(self, name: str) -> None:
        """Wait until nobody is in a session."""
        for _ in range(600):
            told = self.expect(await self.client.get(f"/v1/sessions/{name}"), 200).json()
            if not told["busy"]:
                return
            await asyncio.sleep(0.05)
        raise FoundError(f"{name} stays busy")

    def new_name(self) -> str:
        """Of a session that there is not."""
        self._num_made += 1
        return f"{self._name}-{self._num_made}"


def raw(body: bytes, num_bytes: int | None = None) -> bytes:
    """A request for a completion, byte by byte. num_bytes: what it says of its body's length."""
    lines = [
        f"POST {GOING_ON} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {KEY}",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if num_bytes is None else num_bytes}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def texts_of(answer: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice, of an answer or of a stream's chunks."""
    texts: dict[int, str] = {}
    for chunk in answer:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts
