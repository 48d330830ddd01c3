"""Clients of a server over HTTP that take as little of the machine as they can.

They read the bytes of streams themselves: the usual libraries take several times as long for each
token, and would take it from the server, which runs on the same processors.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

# A token on every event, also where its text is held back.
_EVERY_TOKEN = {"continuous_usage_stats": True}


@dataclass
class Answer:
    """What came of a request, on the clock of `time.perf_counter`.

    begun_s: when it was sent. token_s: when each of its tokens came.
    """

    begun_s: float
    token_s: list[float] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        """From the request to its first token."""
        return self.token_s[0] - self.begun_s


@dataclass(frozen=True)
class Ask:
    """A prompt, and how many tokens to write after it."""

    prompt: Sequence[int]
    max_tokens: int

    def body(self) -> bytes:
        """As a streaming request for completions, greedy and to its full length."""
        asked = {
            "prompt": list(self.prompt),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": _EVERY_TOKEN,
        }
        return json.dumps(asked).encode()


@asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(method: str, path: str, num_bytes: int, **headers: str) -> bytes:
    """The head of a request; a header's name has _ for -."""
    given = {"Host": "127.0.0.1", "Content_Type": "application/json", **headers}
    given["Content_Length"] = str(num_bytes)
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


async def stream(port: int, ask: Ask, into: list[Answer]) -> Answer:
    """Ask over a new connection; the answer is put where it can be seen as it comes.

    Raises:
        RuntimeError: for an answer other than a whole stream.
    """
    body = ask.body()
    async with connection(port) as (reader, writer):
        answer = Answer(time.perf_counter())
        into.append(answer)
        writer.write(head("POST", "/v1/completions", len(body)) + body)
        await _read_stream(reader, answer)
    if len(answer.token_s) != ask.max_tokens:
        raise RuntimeError(f"{len(answer.token_s)} tokens came, not {ask.max_tokens}")
    return answer


async def _read_stream(reader: asyncio.StreamReader, answer: Answer) -> None:
    status = await reader.readuntil(b"\r\n\r\n")
    if not status.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"{status!r} {await reader.read(1000)!r}")
    async for chunk in chunks(reader):
        if b'"error"' in chunk:
            raise RuntimeError(chunk.decode())
        answer.token_s += [time.perf_counter()] * chunk.count(b'"choices":[{')


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The parts of a body in HTTP/1.1's chunked coding."""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)


async def ask_on_and_on(port: int, asks: Iterator[Ask], into: list[Answer]) -> None:
    """A client that asks again as soon as it has its answer."""
    while True:
        await stream(port, next(asks), into)


@dataclass(frozen=True)
class Window:
    """A span of time in which answers are looked at.

    client_cpu_s: what the clients took of processors; None where they can't be told from others.
    """

    start_s: float
    end_s: float
    client_cpu_s: float | None

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.start_s

    def figures(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Speed and waiting times within it; None for what did not happen."""
        tokens, gaps, firsts, cpu_s = 0, list[float](), list[float](), self.client_cpu_s
        for answer in answers:
            times = answer.token_s
            tokens += sum(self._has(each) for each in times)
            gaps += [b - a for a, b in pairwise(times) if self._has(b)]
            if times and self._has(answer.begun_s):
                firsts.append(answer.first_s)
        return {
            "tokens_per_s": tokens / self.seconds,
            "num_requests": len(firsts),
            **_times_ms("first", firsts),
            **_times_ms("gap", gaps),
            "seconds": self.seconds,
            "client_cpu_percent": None if cpu_s is None else 100 * cpu_s / self.seconds,
        }

    def _has(self, moment_s: float) -> bool:
        return self.start_s <= moment_s < self.end_s


def _times_ms(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """The median, the 95th percentile and the longest of some times."""
    ordered = sorted(seconds)

    def at(share: float) -> float | None:
        return 1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None

    return {f"{name}_ms": at(0.5), f"{name}_p95_ms": at(0.95), f"{name}_max_ms": at(1.0)}


@asynccontextmanager
async def clients(port: int, num_clients: int, asks: Iterator[Ask]) -> AsyncIterator[list[Answer]]:
    """Clients that ask on and on, from when each has got something; their answers as they come."""
    answers: list[Answer] = []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask_on_and_on(port, asks, answers)) for _ in range(num_clients)]
        while sum(bool(answer.token_s) for answer in answers) < num_clients:
            await asyncio.sleep(0.02)
        yield answers
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def window() -> AsyncIterator[list[Window]]:
    """Holds one window, from entering to leaving, once it is left."""
    found: list[Window] = []
    start_s, cpu_s = time.perf_counter(), time.process_time()
    yield found
    found.append(Window(start_s, time.perf_counter(), time.process_time() - cpu_s))
