"""A session holds the text that was sent and returned, and no more."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from retnet.checkpoint import Conversation
from retnet.data.tokenizer import ByteTokenizer
from retnet.sampling import SamplingParams
from retnet.serve.answers import Answering
from retnet.serve.config import ServeConfig
from retnet.serve.engine import Engine
from retnet.serve.metrics import Metrics
from retnet.serve.request import Request
from retnet.serve.service import Service
from retnet.serve.turns import kept_tokens
from tests.data.test_chat_template import sentencepiece

TOKENIZER = ByteTokenizer()
LETTERS = {TOKENIZER.encode(letter)[0]: 100.0 for letter in "abcdefgh"}
PROMPT = tuple(TOKENIZER.encode("Once upon a time"))


@asynccontextmanager
async def served(directory: Path, slots: int = 1) -> AsyncIterator[Service]:
    service = Service(directory, ServeConfig(slots=slots, dtype="fp32", queue=0))
    await service.load()
    try:
        yield service
    finally:
        await service.close()


async def turn(service: Service, ids: Sequence[int], params: SamplingParams) -> str:
    """The text of a turn in session "a"."""

    async def make(before: Conversation) -> tuple[Request, int]:
        prompt = (*before.unread, *ids)
        request = Request(prompt=prompt, params=params, state=before.state, returns_state=True)
        return request, len(ids)

    deadline = asyncio.get_running_loop().time() + 60
    answering = Answering(service.loaded, Metrics(service), deadline)
    return "".join([piece.text async for _, piece in answering.in_session("a", make)])


async def held(service: Service) -> Conversation:
    async with service.loaded.sessions.turn("a") as open_turn:
        return open_turn.conversation


def told(engine: Engine, *parts: Sequence[int]) -> Conversation:
    """What reading some parts of a text, one by one, leaves; the last token is unread."""
    conversation = Conversation()
    for part in parts:
        ids = (*conversation.unread, *part)
        request = Request(
            prompt=ids[:-1] if part is parts[-1] else ids,
            params=SamplingParams(max_tokens=0),
            state=conversation.state,
            returns_state=True,
        )
        conversation = Conversation(engine.generate([request])[0].state)
    return Conversation(conversation.state, tuple(parts[-1][-1:]))


def assert_same(actual: Conversation, expected: Conversation) -> None:
    assert actual.unread == expected.unread
    assert actual.state is not None and expected.state is not None
    assert torch.equal(actual.state.position, expected.state.position)
    for mine, theirs in zip(actual.state.layers, expected.state.layers, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.timeout(120)
def test_after_a_stop_string(model_folder: Path) -> None:
    """As if the model had been told just what was returned. With one slot, of a text that would
    never end: it is free before what was returned is read again."""

    async def run() -> None:
        async with served(model_folder) as service:
            await service.loaded.sessions.create("a")
            params = SamplingParams(max_tokens=30, logit_bias=LETTERS)
            text = await turn(service, PROMPT, params)
            assert len(text) == 30
            whole = await held(service)
            assert whole.num_tokens == len(PROMPT) + 30
            await service.loaded.sessions.delete("a")
            await service.loaded.sessions.create("a")
            stop = text[20:24]
            params = SamplingParams(max_tokens=None, logit_bias=LETTERS, stop=(stop,))
            shorter = await turn(service, PROMPT, params)
            assert shorter == text[: text.index(stop)]
            engine = Engine(service.loaded.decoder, num_slots=1)
            assert_same(await held(service), told(engine, PROMPT, TOKENIZER.encode(shorter)))

    asyncio.run(run())


def test_after_a_limit_and_a_stop_token(model_folder: Path) -> None:
    """The last token is unread; one that ends the text is not part of it."""

    async def run() -> None:
        async with served(model_folder) as service:
            await service.loaded.sessions.create("a")
            greedy = SamplingParams(temperature=0, max_tokens=5, logit_bias=LETTERS)
            text = await turn(service, PROMPT, greedy)
            now = await held(service)
            assert now.num_tokens == len(PROMPT) + 5
            assert now.unread == (TOKENIZER.encode(text)[-1],)
            ends = {TOKENIZER.eos_id: 100.0}
            params = SamplingParams(max_tokens=5, logit_bias=ends, stop_tokens=(TOKENIZER.eos_id,))
            assert await turn(service, PROMPT, params) == ""
            now = await held(service)
            assert (now.num_tokens, now.unread) == (2 * len(PROMPT) + 5, ())

    asyncio.run(run())


class Pairs:
    """Bytes, and after them tokens of several: some hold the end of a character and the beginning
    of the next."""

    bos_id = eos_id = None
    more = (b"", b" \xe2", b"\x80\x9c", b"a\xe2\x80", b"\x9cb\xe2", b"ab", b"\x82\xac", b"b\xff")

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    encode_within = encode

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(bytes([i]) if i < 256 else self.more[i - 256] for i in ids)


@given(
    st.lists(st.sampled_from([97, 98, 32, 0xE2, 0x80, 0xFF]) | st.integers(256, 263), max_size=8),
    st.integers(0, 20),
)
@example([97, 257, 258], 2)  # "a " and the first byte of a quotation mark, which is not kept
def test_kept_tokens_write_the_text(tokens: list[int], length: int) -> None:
    pairs = Pairs()
    text = pairs.decode_bytes(tokens).decode(errors="replace")[:length]
    kept = kept_tokens(pairs, tokens, text)
    assert pairs.decode_bytes(kept).decode(errors="replace") == text


def test_what_is_kept_gets_no_space(tmp_path: Path) -> None:
    """Where a tokenizer puts one before the first text, and a token is cut."""
    tokenizer = sentencepiece(tmp_path, "first")
    tokens = tokenizer.encode_within("hello hello")
    kept = kept_tokens(tokenizer, tokens, "hello he")
    assert tokenizer.decode(kept) == "hello he"
    assert tokenizer.decode(tokenizer.encode("he")) == " he"
