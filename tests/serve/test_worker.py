"""The engine's thread, as coroutines see it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
import torch

from retnet.config import ModelConfig
from retnet.decoding import Decoder
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from retnet.serve.engine import Engine
from retnet.serve.request import Finish, Output, Request
from retnet.serve.worker import AsyncEngine, EngineStoppedError, QueueFullError

ENDLESS = Request(prompt=(1, 2), params=SamplingParams(max_tokens=None))


def make_core(num_slots: int = 2) -> Engine:
    config = ModelConfig(vocab_size=32, d_model=32, num_layers=1, num_heads=1)
    decoder = Decoder(RetNet(config).eval(), kernel="torch")
    return Engine(decoder, num_slots=num_slots, prefill_chunk=8)


@pytest.fixture
def engine() -> Iterator[AsyncEngine]:
    engine = AsyncEngine(make_core(), max_waiting=2)
    engine.start()
    yield engine
    engine.stop()


async def collect(outputs: AsyncIterator[Output]) -> list[Output]:
    return [output async for output in outputs]


async def until_idle(engine: AsyncEngine) -> None:
    deadline = time.monotonic() + 10
    while engine.num_open or engine.stats().num_writing:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_streams_equal_the_engine(engine: AsyncEngine) -> None:
    """Four at once on two slots get what the engine gives when it is called directly."""
    requests = [
        Request(prompt=(seed, 3), params=SamplingParams(max_tokens=9), seed=seed)
        for seed in range(4)
    ]

    async def all_at_once() -> list[list[Output]]:
        return await asyncio.gather(*(collect(engine.stream(request)) for request in requests))

    streamed = asyncio.run(all_at_once())
    expected = Engine(engine.engine.decoder, num_slots=1, prefill_chunk=8).generate(requests)
    for outputs, result in zip(streamed, expected, strict=True):
        assert tuple(output.token for output in outputs) == result.tokens
        assert outputs[-1].finish == Finish.LENGTH


def test_closing_a_stream_aborts(engine: AsyncEngine) -> None:
    async def read_some() -> None:
        async with aclosing(engine.stream(ENDLESS)) as outputs:
            for _ in range(3):
                await anext(outputs)
        await until_idle(engine)

    asyncio.run(read_some())
    assert engine.stats().num_writing == 0


def test_a_cancelled_task_aborts(engine: AsyncEngine) -> None:
    """Also one that still waits for its slot."""

    async def cancel() -> None:
        tasks = [asyncio.create_task(collect(engine.stream(ENDLESS))) for _ in range(4)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until_idle(engine)

    asyncio.run(cancel())
    assert engine.stats().num_waiting == 0


def test_more_than_may_wait(engine: AsyncEngine) -> None:
    """Two slots and two that wait: the fifth is refused, and comes in when one has gone."""

    async def fill() -> None:
        tasks = [asyncio.create_task(collect(engine.stream(ENDLESS))) for _ in range(4)]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError, match="2 requests wait"):
            await collect(engine.stream(ENDLESS))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        one = Request(prompt=(1,), params=SamplingParams(max_tokens=1))
        assert len(await collect(engine.stream(one))) == 1

    asyncio.run(fill())


def test_bad_requests_are_told_at_once(engine: AsyncEngine) -> None:
    async def ask() -> None:
        with pytest.raises(ValueError, match=r"in \[0, 32\)"):
            await collect(engine.stream(Request(prompt=(99,), params=SamplingParams())))
        assert engine.num_open == 0

    asyncio.run(ask())


def test_stop_ends_what_runs() -> None:
    engine = AsyncEngine(make_core())
    engine.start()

    async def run() -> list[Output]:
        task = asyncio.create_task(collect(engine.stream(ENDLESS)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.stop)
        outputs = await task
        with pytest.raises(EngineStoppedError):
            await collect(engine.stream(ENDLESS))
        return outputs

    assert asyncio.run(run())[-1].finish == Finish.ABORTED


def test_a_step_that_fails_tells_everybody(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for ever on an engine that is gone, and the log says what happened."""
    core = make_core()
    engine = AsyncEngine(core)
    engine.start()

    async def run() -> list[Output]:
        task = asyncio.create_task(collect(engine.stream(ENDLESS)))
        await asyncio.sleep(0.05)
        core.decoder.model.backbone.embed_tokens.weight.data = torch.empty(0, 32)
        outputs = await asyncio.wait_for(task, 10)
        with pytest.raises(EngineStoppedError):
            await collect(engine.stream(ENDLESS))
        return outputs

    assert asyncio.run(run())[-1].finish == Finish.FAILED
    assert "a step of the engine failed" in caplog.text
    engine.stop()
