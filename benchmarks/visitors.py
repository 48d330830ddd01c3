"""Visitors of a server who do all that clients do, the good and the bad, at random.

Each deed says what it found wrong; nothing is wrong with refusing politely where the queue is full.
"""

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
from malformed import BAD_REQUESTS, BAD_STATES, GARBAGE
from talk import GOING_ON, KEY, QUEUE_FULL, Findings, FoundError, Talk, raw, texts_of

# The same text whenever asked: greedy, drawn, with penalties, stopped.
KNOWN: tuple[dict[str, Any], ...] = (
    {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0},
    {"prompt": "a" * 700, "max_tokens": 24, "seed": 7, "logprobs": 2, "echo": True},
    {"prompt": [5, 6, 7] * 40, "max_tokens": 30, "seed": 1, "top_k": 40, "presence_penalty": 1},
    {"prompt": "é", "max_tokens": 48, "seed": 3, "temperature": 1.5, "stop": ["e", "\x07"]},
    {"prompt": ["one", "two"], "n": 2, "max_tokens": 16, "seed": 5, "top_p": 0.9},
)


class Visitor:
    """One of them. number: makes names and the random numbers its own."""

    def __init__(
        self, client: httpx.AsyncClient, port: int, findings: Findings, number: int, seed: int
    ) -> None:
        self._client, self._port, self._findings = client, port, findings
        self._random = random.Random(1000 * seed + number)
        self._talk = Talk(client, findings, f"v{number}")
        self._sessions: list[str] = []

    async def stay(self) -> None:
        """One deed after the other, until it is over."""
        deeds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self.complete),
            (3, self.chat),
            (3, self.ask_what_is_known),
            (3, self.leave_early),
            (2, self.leave_without_a_word),
            (2, self.go_on),
            (1, self.use_a_session),
            (1, self.cut_a_turn),
            (1, self.two_turns_at_once),
            (3, self.send_nonsense),
            (1, self.send_a_bad_state),
            (1, self.use_a_wrong_key),
            (1, self.read_slowly),
            (1, self.stop_in_the_body),
            (1, self.send_garbage),
            (1, self.look_around),
        ]
        weights, choices = zip(*deeds, strict=True)
        while not self._findings.is_over:
            [deed] = self._random.choices(choices, weights)
            self._findings.deeds[deed.__name__] += 1
            try:
                await deed()
            except (FoundError, httpx.HTTPError, OSError, ValueError, KeyError) as error:
                self._findings.failures.append(f"{deed.__name__}: {error!r}"[:600])
            await asyncio.sleep(self._random.expovariate(20))

    # --- what good clients do

    async def complete(self) -> None:
        """A completion of any kind."""
        await self._answered(GOING_ON, self._sampling({"prompt": self._text(), "n": self._few()}))

    async def chat(self) -> None:
        """An answer in a conversation."""
        messages = [{"role": "user", "content": self._text()} for _ in range(self._few())]
        await self._answered("/v1/chat/completions", self._sampling({"messages": messages}))

    async def ask_what_is_known(self) -> None:
        """What was asked before must be answered as before."""
        number = self._random.randrange(len(KNOWN))
        answer = await self._answered(GOING_ON, KNOWN[number])
        if answer is not None and texts_of(answer) != self._findings.known[number]:
            raise FoundError(f"{KNOWN[number]}: {texts_of(answer)}, not as before")

    async def look_around(self) -> None:
        """All that there is to read."""
        for path in ("/health", "/v1/models", "/metrics", "/v1/sessions", "/tokenizer_info"):
            self._talk.expect(await self._client.get(path), 200)
        text = self._text()
        reply = self._talk.expect(await self._client.post("/tokenize", json={"prompt": text}), 200)
        tokens = reply.json()["tokens"]
        reply = await self._client.post("/detokenize", json={"tokens": tokens})
        if self._talk.expect(reply, 200).json()["prompt"].removeprefix("<bos>") != text:
            raise FoundError(f"{text!r} came back as {reply.json()['prompt']!r}")

    async def go_on(self) -> None:
        """A turn in a session that is kept for good."""
        if (len(self._sessions) < 3 and self._random.random() < 0.5) or not self._sessions:
            self._sessions.append(await self._talk.create())
        name = self._random.choice(self._sessions)
        before = self._findings.sessions[name]
        body = {**self._sampling({"prompt": self._text()}), "session_id": name, "echo": False}
        answer = await self._answered(GOING_ON, {**body, "logprobs": None})
        after = await self._talk.num_tokens(name)
        if answer is None and after != before:
            raise FoundError(f"{name} has {after} tokens after a refused turn, not {before}")
        self._findings.sessions[name] = after

    async def use_a_session(self) -> None:
        """Two ways to copy it; both copies must go on in the same way, then all is deleted."""
        name, fork, copy = await self._talk.create(), self._talk.new_name(), self._talk.new_name()
        first = {"prompt": self._text(), "max_tokens": self._random.randint(1, 20), "seed": 4}
        done = await self._answered(GOING_ON, {**first, "session_id": name})
        self._talk.expect(
            await self._client.post(f"/v1/sessions/{name}/fork", json={"id": fork}), 201
        )
        data = self._talk.expect(await self._client.get(f"/v1/sessions/{name}/state"), 200).content
        self._talk.expect(await self._client.put(f"/v1/sessions/{copy}/state", content=data), 200)
        self._findings.sessions |= {fork: 0, copy: 0}
        on = {"prompt": " and", "max_tokens": 12, "seed": 9}
        names = (name, fork, copy)
        found = [await self._answered(GOING_ON, {**on, "session_id": each}) for each in names]
        told = [texts_of(each) for each in found if each is not None]
        if done is not None and any(each != told[0] for each in told):
            raise FoundError(f"copies of a session go on differently: {told}")
        for each in names:
            self._talk.expect(await self._client.delete(f"/v1/sessions/{each}"), 200)
            self._talk.expect(await self._client.get(f"/v1/sessions/{each}"), 404)
            del self._findings.sessions[each]

    async def two_turns_at_once(self) -> None:
        """Only one of them goes on with the session."""
        name = await self._talk.create()
        body = {"prompt": self._text(), "max_tokens": 10, "session_id": name, "ignore_eos": True}
        asks = (self._client.post(GOING_ON, json=body) for _ in range(2))
        statuses = sorted(
            self._talk.count(each.status_code) for each in await asyncio.gather(*asks)
        )
        if any(status not in (200, 409, QUEUE_FULL) for status in statuses):
            raise FoundError(f"two turns at once: {statuses}")
        await self._talk.delete(name)

    # --- what others do

    async def leave_early(self) -> None:
        """A stream that is cut after some of it."""
        body = self._sampling({"prompt": self._text(), "max_tokens": 500, "stream": True})
        num_lines = self._random.randint(0, 30)
        async with self._client.stream("POST", GOING_ON, json=body) as response:
            self._talk.count(response.status_code)
            if response.status_code == QUEUE_FULL:
                return
            self._talk.expect_status(response.status_code, 200, "a stream to leave")
            async for _ in response.aiter_lines():
                num_lines -= 1
                if num_lines < 0:
                    return

    async def leave_without_a_word(self) -> None:
        """Somebody who asks and is gone before there is anything."""
        body = self._sampling({"prompt": self._text(), "max_tokens": 500})
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(0, 1.0)):
                await self._client.post(GOING_ON, json=body)

    async def cut_a_turn(self) -> None:
        """A turn that is left leaves its session as it was."""
        name = await self._talk.create()
        await self._answered(GOING_ON, {"prompt": "x", "max_tokens": 3, "session_id": name})
        before = await self._talk.num_tokens(name)
        body = {"prompt": self._text(), "max_tokens": 2000, "ignore_eos": True}
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(0, 0.5)):
                await self._client.post(GOING_ON, json={**body, "session_id": name})
                await asyncio.sleep(60)  # it was refused
        if await self._talk.num_tokens(name) != before:
            raise FoundError(f"a turn that was cut changed {name}")
        await self._talk.delete(name)

    async def send_nonsense(self) -> None:
        """A request that can't be served."""
        bad = self._random.choice(BAD_REQUESTS)
        headers = {"content-type": "application/json"}
        reply = await self._client.request(
            bad.method, bad.path, content=bad.content, headers=headers
        )
        if reply.status_code != QUEUE_FULL:
            self._talk.expect(reply, *bad.statuses)

    async def send_a_bad_state(self) -> None:
        """A file that is no session, or a damaged one."""
        name, other = await self._talk.create(), self._talk.new_name()
        data = self._talk.expect(await self._client.get(f"/v1/sessions/{name}/state"), 200).content
        bad = self._random.choice(BAD_STATES)(data)
        path = f"/v1/sessions/{self._random.choice((name, other))}/state"
        self._talk.expect(await self._client.put(path, content=bad), 400, 413)
        await self._talk.delete(name)

    async def use_a_wrong_key(self) -> None:
        """Without the key there is nothing."""
        key = self._random.choice(("", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY))
        path = self._random.choice((GOING_ON, "/v1/sessions", "/metrics", "/v1/models"))
        body = json.dumps({"prompt": "a"}) if path == GOING_ON else "{}"
        reply = await self._client.post(path, content=body, headers={"authorization": key})
        self._talk.expect(reply, 401)

    async def read_slowly(self) -> None:
        """A reader that takes nearly nothing of a large answer, for a while."""
        body = {"prompt": "a", "max_tokens": 400, "stream": True, "logprobs": 20}
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(link, ("127.0.0.1", self._port))
            await loop.sock_sendall(link, raw(json.dumps(body).encode()))
            for _ in range(self._random.randint(1, 20)):
                if not await loop.sock_recv(link, 200):
                    return
                await asyncio.sleep(0.2)

    async def stop_in_the_body(self) -> None:
        """A body that is announced and doesn't come, or comes in drops."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(raw(b'{"prompt": "', num_bytes=5000))
            for _ in range(self._random.randint(0, 40)):
                await asyncio.sleep(0.2)
                writer.write(b"a")
                if reader.at_eof():
                    break
            if self._random.random() < 0.5:
                answer = await asyncio.wait_for(reader.read(1000), 60)
                if answer and not answer.startswith(b"HTTP/1.1 408"):
                    raise FoundError(f"a body that stops is answered {answer[:100]!r}")
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def send_garbage(self) -> None:
        """Bytes that are no HTTP, or nearly."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._random.choice((*GARBAGE, self._random.randbytes(300))))
            with suppress(TimeoutError):
                answer = await asyncio.wait_for(reader.read(1000), 2)
                if answer and not answer.startswith(b"HTTP/1.1 4"):
                    raise FoundError(f"garbage is answered {answer[:100]!r}")
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _answered(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]] | None:
        """The answer, as a stream or not; None where the queue is full."""
        return await self._talk.answered(path, body, streams=self._random.random() < 0.5)

    def _few(self) -> int:
        return self._random.choice((1, 1, 1, 2, 3))

    def _text(self) -> str:
        length = self._random.choice((1, 10, 100, 400, 3000))
        return "".join(self._random.choices("abc é€\n😀", k=self._random.randint(1, length)))

    def _sampling(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body, and some of the fields that say how to write."""
        choose = self._random.choice
        fields = {
            "max_tokens": self._random.choice((0, 1, 5, 20, 80)),
            "temperature": choose((0, 0.7, 1.0, 2.0)),
            "top_p": choose((0.1, 0.9, 1.0)),
            "top_k": choose((-1, 0, 1, 50)),
            "min_p": choose((0, 0.1)),
            "seed": choose((None, 0, -1, 2**62)),
            "stop": choose((None, "a", ["b", "\n"])),
            "frequency_penalty": choose((0, 1.5)),
            "repetition_penalty": choose((1, 1.2)),
            "logit_bias": choose((None, {"40": 5, "50": -100})),
            "ignore_eos": choose((True, False)),
            "stream_options": choose((None, {"include_usage": True})),
        }
        if "prompt" in body:
            fields |= {"logprobs": choose((None, None, 3)), "echo": choose((True, False))}
        return {**fields, **body}
