"""Sessions: one turn at a time, nothing lost, nothing half; in memory and in a folder."""

import asyncio
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retnet.checkpoint import Conversation, StateFormat
from retnet.config import ModelConfig
from retnet.decoding import Decoder
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from retnet.serve.engine import Engine
from retnet.serve.request import Request
from retnet.serve.session_errors import (
    BadSessionError,
    SessionBusyError,
    SessionError,
    SessionExistsError,
    SessionIdError,
    SessionStorageError,
    UnknownSessionError,
)
from retnet.serve.sessions import SessionStore
from tests.disk import full_disk

VOCAB = 64
LARGE = 2**30


def make_model(seed: int = 0) -> RetNet:
    config = ModelConfig(vocab_size=VOCAB, d_model=32, num_layers=2, num_heads=2)
    return RetNet(config, generator=torch.Generator().manual_seed(seed)).eval()


MODEL = make_model()


def conversation(num_tokens: int) -> Conversation:
    """Of so many tokens, the last of them unread."""
    tokens = torch.arange(num_tokens)[None] % VOCAB
    with torch.no_grad():
        _, state = MODEL(tokens[:, :-1])
    return Conversation(state, (int(tokens[0, -1]),))


def assert_same(actual: Conversation, expected: Conversation) -> None:
    assert actual.unread == expected.unread
    assert actual.num_tokens == expected.num_tokens
    assert (actual.state is None) == (expected.state is None)
    if actual.state is not None and expected.state is not None:
        for mine, theirs in zip(actual.state.layers, expected.state.layers, strict=True):
            assert torch.equal(mine, theirs)


async def commit(store: SessionStore, session_id: str, held: Conversation) -> None:
    async with store.turn(session_id) as turn:
        await turn.commit(held)


async def held_by(store: SessionStore, session_id: str) -> Conversation:
    async with store.turn(session_id) as turn:
        return turn.conversation


@pytest.fixture(params=["memory", "folder"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], SessionStore]:
    directory = tmp_path / "new" / "folder" if request.param == "folder" else None
    return lambda: SessionStore(MODEL, directory, LARGE)


def test_a_life(make_store: Callable[[], SessionStore]) -> None:
    async def live() -> None:
        store, before = make_store(), int(time.time())
        made = await store.create("a")
        assert (made.id, made.num_tokens, made.state_bytes, made.is_busy) == ("a", 0, 0, False)
        assert before <= made.created <= time.time()
        await commit(store, "a", conversation(9))
        fork = await store.fork("a", "b")
        assert (fork.num_tokens, fork.state_bytes) == (9, store.format.state_bytes)
        await commit(store, "a", conversation(12))
        assert [(each.id, each.num_tokens) for each in await store.list_all()] == [
            ("a", 12),
            ("b", 9),
        ]
        assert_same(await held_by(store, "b"), conversation(9))
        assert store.num_sessions == 2
        await store.delete("a")
        with pytest.raises(UnknownSessionError, match="no session 'a'"):
            await store.get("a")
        assert (await store.get("b")).num_tokens == 9
        assert store.num_sessions == 1

    asyncio.run(live())


def test_names(make_store: Callable[[], SessionStore]) -> None:
    """Nobody guesses those that the store gives; a name is taken once."""

    async def run() -> None:
        store = make_store()
        ids = {(await store.create()).id for _ in range(3)} | {(await store.create("x-_9")).id}
        assert len(ids) == 4 and all(len(name) >= 22 for name in ids - {"x-_9"})
        with pytest.raises(SessionExistsError, match="'x-_9' already"):
            await store.create("x-_9")
        with pytest.raises(SessionExistsError):
            await store.fork(next(iter(ids)), "x-_9")
        results = await asyncio.gather(
            *(store.create("same") for _ in range(4)), return_exceptions=True
        )
        assert sorted(isinstance(each, SessionExistsError) for each in results) == [
            False,
            True,
            True,
            True,
        ]

    asyncio.run(run())


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "a.b", "-a", "_a", "a" * 65, "a\n", "ä",
     "a\0", "%2e", "=a", "\ud800"],
)  # fmt: skip
def test_names_that_none_has(name: str, make_store: Callable[[], SessionStore]) -> None:
    async def run() -> None:
        store = make_store()
        await store.create("good")
        for ask in (
            store.create(name),
            store.get(name),
            store.delete(name),
            store.fork(name, "other"),
            store.fork("good", name),
            store.to_bytes(name),
            store.from_bytes(name, store.format.to_bytes(Conversation())),
            held_by(store, name),
        ):
            with pytest.raises(SessionIdError) as error:
                await ask
            error.value.encoded()
        assert store.num_sessions == 1

    asyncio.run(run())


def test_one_turn_at_a_time(make_store: Callable[[], SessionStore]) -> None:
    """Others are refused meanwhile; a fork is of what stood before."""

    async def run() -> None:
        store = make_store()
        await store.create("a")
        await commit(store, "a", conversation(5))
        data = await store.to_bytes("a")
        async with store.turn("a") as turn:
            assert_same(turn.conversation, conversation(5))
            for ask in (held_by(store, "a"), store.delete("a"), store.from_bytes("a", data)):
                with pytest.raises(SessionBusyError, match="middle of a turn"):
                    await ask
            with pytest.raises(SessionExistsError):
                await store.create("a")
            assert (await store.get("a")).is_busy
            assert [each.is_busy for each in await store.list_all()] == [True]
            await store.fork("a", "b")
            await turn.commit(conversation(8))
            assert_same(turn.conversation, conversation(8))
            await store.fork("a", "c")
        assert not (await store.get("a")).is_busy
        assert [each.num_tokens for each in await store.list_all()] == [8, 5, 8]

    asyncio.run(run())


def test_a_turn_without_a_commit_changes_nothing(make_store: Callable[[], SessionStore]) -> None:
    async def run() -> None:
        store = make_store()
        await store.create("a")
        await commit(store, "a", conversation(5))
        with pytest.raises(ZeroDivisionError):
            async with store.turn("a"):
                raise ZeroDivisionError
        async with store.turn("a"):
            pass
        assert_same(await held_by(store, "a"), conversation(5))

    asyncio.run(run())


def test_bytes_make_and_replace(make_store: Callable[[], SessionStore]) -> None:
    async def run() -> None:
        store = make_store()
        await store.create("a")
        await commit(store, "a", conversation(7))
        data = await store.to_bytes("a")
        assert (await store.from_bytes("b", data)).num_tokens == 7
        await commit(store, "a", conversation(20))
        replaced = await store.from_bytes("a", data)
        assert replaced.created == (await store.get("a")).created
        for name in ("a", "b"):
            assert_same(await held_by(store, name), conversation(7))
        other = StateFormat(make_model(1)).to_bytes(Conversation(None, (1,)))
        for bad, message in ((data[:-1], "damaged"), (b"", "damaged"), (other, "another model")):
            with pytest.raises(BadSessionError, match=f"the body.* {message}"):
                await store.from_bytes("a", bad)
            with pytest.raises(BadSessionError, match=message):
                await store.from_bytes("c", bad)
        assert_same(await held_by(store, "a"), conversation(7))
        assert store.num_sessions == 2

    asyncio.run(run())


def test_who_is_cancelled_in_a_commit(make_store: Callable[[], SessionStore]) -> None:
    """The session is free again once it is written, and holds what was before or after, whole."""

    async def run() -> None:
        store = make_store()
        await store.create("a")
        await commit(store, "a", conversation(5))
        for num_steps in range(8):
            task = asyncio.create_task(commit(store, "a", conversation(9)))
            for _ in range(num_steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            deadline = time.monotonic() + 10
            while (await store.get("a")).is_busy:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
            now = await held_by(store, "a")
            assert_same(now, conversation(now.num_tokens))
            assert now.num_tokens in (5, 9)
            await commit(store, "a", conversation(5))

    asyncio.run(run())


# Going on


def went_on(engine: Engine, before: Conversation, ids: tuple[int, ...]) -> Conversation:
    params = SamplingParams(max_tokens=6)
    request = Request(
        prompt=(*before.unread, *ids), params=params, state=before.state, returns_state=True
    )
    [result] = engine.generate([request])
    return Conversation(result.state, result.tokens[-1:])


def test_a_restart_between_two_turns(tmp_path: Path) -> None:
    """The second turn is the same to the last bit, on a new engine, store and model."""

    async def turns(restart: bool, directory: Path) -> Conversation:
        engine, store = Engine(Decoder(make_model())), SessionStore(make_model(), directory, LARGE)
        await store.create("a")
        for ids in ((1, 2, 3, 4), (9, 8, 7)):
            async with store.turn("a") as turn:
                await turn.commit(went_on(engine, turn.conversation, ids))
            if restart:
                engine = Engine(Decoder(make_model()))
                store = SessionStore(make_model(), directory, LARGE)
        assert (await store.get("a")).num_tokens == 4 + 6 + 3 + 6
        return await held_by(store, "a")

    without = asyncio.run(turns(False, tmp_path / "without"))
    assert_same(asyncio.run(turns(True, tmp_path / "with")), without)


def test_times_survive_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        store = SessionStore(MODEL, tmp_path, LARGE)
        made = await store.create("a")
        [path] = tmp_path.iterdir()
        os.utime(path, (made.created + 500, made.created + 500))
        again = await SessionStore(MODEL, tmp_path, LARGE).get("a")
        assert (again.created, again.last_used) == (made.created, made.created + 500)
        fork = await store.fork("a", "b")
        assert fork.created == fork.last_used

    asyncio.run(run())


# Memory


def test_memory_is_bounded() -> None:
    """The sessions that were not used for longest leave, but not in their turn."""

    async def run() -> None:
        size = StateFormat(MODEL).state_bytes + 1_100
        store = SessionStore(MODEL, None, 4 * size)
        await store.create("first")
        async with store.turn("first") as turn:
            await turn.commit(conversation(3))
            for index in range(8):
                await store.create(f"s{index}")
                await commit(store, f"s{index}", conversation(4))
                assert store.memory_bytes <= 4 * size
                if index > 1:
                    await store.get("s1")
        assert [each.id for each in await store.list_all()] == ["first", "s1", "s6", "s7"]
        with pytest.raises(UnknownSessionError, match="dropped for others"):
            await store.get("s5")

    asyncio.run(run())


def test_empty_sessions_are_bounded() -> None:
    async def run() -> None:
        store = SessionStore(MODEL, None, StateFormat(MODEL).state_bytes + 4_000)
        for _ in range(100):
            await store.create()
        assert store.num_sessions < 50

    asyncio.run(run())


def test_memory_beside_a_folder_is_bounded(tmp_path: Path) -> None:
    """All sessions are there, and come from the folder."""

    async def run(max_bytes: int) -> None:
        store = SessionStore(MODEL, tmp_path, max_bytes)
        for index in range(5):
            await store.from_bytes(f"s{index}", store.format.to_bytes(conversation(2 + index)))
        assert store.memory_bytes <= max_bytes
        for index in range(5):
            assert_same(await held_by(store, f"s{index}"), conversation(2 + index))
        assert store.memory_bytes <= max_bytes

    asyncio.run(run(2 * StateFormat(MODEL).state_bytes + 5_000))
    asyncio.run(run(0))


def test_names_are_not_interned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path interns each part of a path. Reading and listing sessions all day, that had Python lay
    its table of such strings anew again and again, and left holes of 4 MB in threads' heaps."""
    interned: list[str] = []

    def intern(text: str) -> str:
        interned.append(text)
        return real(text)

    async def run() -> None:
        store = SessionStore(MODEL, tmp_path, 0)
        await store.create("a")
        monkeypatch.setattr(sys, "intern", intern)
        await store.list_all()
        await store.get("a")
        await held_by(store, "a")
        with pytest.raises(UnknownSessionError):
            await store.get("b")
        await store.delete("a")

    real = sys.intern
    asyncio.run(run())
    assert [text for text in interned if text.endswith(".safetensors")] == []


def test_memory_for_no_session() -> None:
    with pytest.raises(ValueError, match="max_bytes must hold a session's"):
        SessionStore(MODEL, None, 5_000)


# The folder


def test_a_full_disk(tmp_path: Path) -> None:
    """All that writes is refused; what was there stays, nothing else is left, and later it goes."""

    async def run() -> None:
        store = SessionStore(MODEL, tmp_path, LARGE)
        await store.create("a")
        await commit(store, "a", conversation(5))
        data = store.format.to_bytes(conversation(9))
        with full_disk(100):
            for ask in (
                commit(store, "a", conversation(9)),
                store.create("b"),
                store.fork("a", "c"),
                store.from_bytes("a", data),
                store.from_bytes("d", data),
            ):
                with pytest.raises(SessionStorageError, match="stays as it was: File too large"):
                    await ask
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
        for each in (store, SessionStore(MODEL, tmp_path, LARGE)):
            assert_same(await held_by(each, "a"), conversation(5))
        await commit(store, "a", conversation(9))
        assert (await store.get("a")).num_tokens == 9

    asyncio.run(run())


ON_A_SMALL_DISK = """
import asyncio, sys
from pathlib import Path
from tests.serve.test_sessions import *

async def run():
    disk = Path(sys.argv[1])
    store = SessionStore(MODEL, disk, LARGE)
    await store.from_bytes("a", store.format.to_bytes(conversation(5)))
    fill = (disk / "fill").open("wb", buffering=0)
    try:
        while True:
            fill.write(bytes(4096))
    except OSError:
        pass
    try:
        await commit(store, "a", conversation(9))
    except SessionStorageError as error:
        assert "No space left on device" in str(error), error
    else:
        raise AssertionError("there was room")
    assert sorted(path.name for path in disk.iterdir()) == ["a.safetensors", "fill"]
    assert_same(await held_by(SessionStore(MODEL, disk, LARGE), "a"), conversation(5))

asyncio.run(run())
"""


def test_a_disk_without_room(tmp_path: Path) -> None:
    """A file system that is full indeed, which only one process sees; where one can be had."""
    apart = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=64k tmpfs {shlex.quote(str(tmp_path))}"
    try:
        subprocess.run([*apart, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    python = shlex.join([sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)])
    subprocess.run([*apart, f"{mount} && {python}"], check=True)


def test_a_folder_that_goes(tmp_path: Path) -> None:
    async def run() -> None:
        folder = tmp_path / "sessions"
        store = SessionStore(MODEL, folder, LARGE)
        await store.create("a")
        (folder / "a.safetensors").unlink()
        folder.rmdir()
        with pytest.raises(UnknownSessionError):
            await held_by(store, "a")
        with pytest.raises(SessionStorageError, match="No such file"):
            await store.create("b")
        assert await store.list_all() == []

    asyncio.run(run())


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="sessions can't be kept in"):
        SessionStore(MODEL, tmp_path / "file", LARGE)


def test_capitals_are_other_letters(tmp_path: Path) -> None:
    """Also where the file system takes them for the same: no two names differ by them alone."""

    async def run() -> None:
        store = SessionStore(MODEL, tmp_path, LARGE)
        for index, name in enumerate(("abc", "ABC", "aBc", "Abc")):
            await store.from_bytes(name, store.format.to_bytes(conversation(2 + index)))
        names = [path.name for path in tmp_path.iterdir()]
        assert len({name.lower() for name in names}) == 4
        assert [(each.id, each.num_tokens) for each in await store.list_all()] == [
            ("ABC", 3),
            ("Abc", 5),
            ("aBc", 4),
            ("abc", 2),
        ]

    asyncio.run(run())


def spoilt(path: Path) -> None:
    tensors = load_file(path)
    tensors["layers.1"][0, 0, 0, 0] = math.nan
    metadata = {"format": "retnet-state-1", "fingerprint": StateFormat(MODEL).fingerprint}
    save_file(tensors, path, metadata)


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 9),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello " * 500),
    "another model's": lambda path: StateFormat(make_model(1)).save(path, Conversation(None, (1,))),
    "weights": lambda path: save_file({"w": torch.ones(2)}, path),
}


@pytest.mark.parametrize("kind", [*BAD_FILES, "not a number"])
def test_bad_files(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The others serve; this one says what is wrong, and can be replaced or deleted."""

    async def run() -> None:
        store = SessionStore(MODEL, tmp_path, LARGE)
        for name in ("bad", "good"):
            await store.from_bytes(name, store.format.to_bytes(conversation(4)))
        BAD_FILES.get(kind, spoilt)(tmp_path / "bad.safetensors")
        for each in (store, SessionStore(MODEL, tmp_path, LARGE)):
            listed = [session.id for session in await each.list_all()]
            # Whether numbers are numbers is not looked at for a list.
            assert listed == (["bad", "good"] if kind == "not a number" else ["good"])
            for ask in (held_by(each, "bad"), each.fork("bad"), each.to_bytes("bad")):
                with pytest.raises(BadSessionError) as error:
                    await ask
                assert str(tmp_path) not in str(error.value)
            with pytest.raises(SessionExistsError):
                await each.create("bad")
            assert_same(await held_by(each, "good"), conversation(4))
        assert "'bad' can't be used" in caplog.text or kind == "not a number"
        await store.from_bytes("bad", store.format.to_bytes(conversation(6)))
        assert_same(await held_by(store, "bad"), conversation(6))
        BAD_FILES.get(kind, spoilt)(tmp_path / "bad.safetensors")
        await store.delete("bad")
        with pytest.raises(UnknownSessionError):
            await store.get("bad")

    asyncio.run(run())


@pytest.mark.timeout(60)
def test_what_else_lies_in_the_folder(tmp_path: Path) -> None:
    """Is left alone, and nobody waits for a pipe."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "Capital.safetensors").write_bytes(b"")
    (tmp_path / ("long" * 20 + ".safetensors")).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    old, new = (tmp_path / f".a.safetensors.{n}.part" for n in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))

    async def run() -> None:
        store = SessionStore(MODEL, tmp_path, LARGE)
        assert await store.list_all() == []
        for name in ("pipe", "folder"):
            with pytest.raises(UnknownSessionError):
                await held_by(store, name)
        with pytest.raises(SessionStorageError, match="Is a directory"):
            await store.create("folder")

    asyncio.run(run())
    assert not old.exists() and new.exists()
    assert len(list(tmp_path.iterdir())) == 6


# Several servers


def test_another_server_went_on(tmp_path: Path) -> None:
    """What is in memory is not believed when the file is another."""

    async def run() -> None:
        here, there = (SessionStore(MODEL, tmp_path, LARGE) for _ in range(2))
        await here.create("a")
        await commit(here, "a", conversation(5))
        await commit(there, "a", conversation(9))
        assert (await here.get("a")).num_tokens == 9
        assert_same(await held_by(here, "a"), conversation(9))
        await commit(here, "a", conversation(6))
        assert_same(await held_by(there, "a"), conversation(6))
        await there.delete("a")
        with pytest.raises(UnknownSessionError):
            await held_by(here, "a")

    asyncio.run(run())


async def _commits(store: SessionStore) -> None:
    await commit(store, "a", conversation(9))


async def _deletes(store: SessionStore) -> None:
    await store.delete("a")


@pytest.mark.parametrize("meddle", [_commits, _deletes])
def test_another_server_in_between(
    tmp_path: Path, meddle: Callable[[SessionStore], Awaitable[None]]
) -> None:
    """Who comes last is told; the text of the other isn't lost, nor comes back what was deleted."""

    async def run() -> None:
        here, there = (SessionStore(MODEL, tmp_path, LARGE) for _ in range(2))
        await here.create("a")
        await commit(here, "a", conversation(5))
        async with here.turn("a") as turn:
            await meddle(there)
            with pytest.raises(SessionBusyError, match="by another process"):
                await turn.commit(conversation(7))
        left = {"_commits": 9, "_deletes": None}[meddle.__name__]
        try:
            found = (await here.get("a")).num_tokens
        except UnknownSessionError:
            found = None
        assert found == left

    asyncio.run(run())


ENDLESS_COMMITS = """
import asyncio, sys
from pathlib import Path
from tests.serve.test_sessions import MODEL, SessionStore, commit, conversation

async def run():
    store = SessionStore(MODEL, Path(sys.argv[1]), 2**30)
    await store.create("a")
    texts = [conversation(n) for n in range(2, 9)]
    while True:
        for text in texts:
            await commit(store, "a", text)
            print(text.num_tokens, flush=True)

asyncio.run(run())
"""


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    """What it kept last is there, or what it was about to keep; whole."""
    command = [sys.executable, "-c", ENDLESS_COMMITS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    last = int(lines[-1])

    async def run() -> None:
        now = await held_by(SessionStore(MODEL, tmp_path, LARGE), "a")
        assert_same(now, conversation(now.num_tokens))
        assert now.num_tokens in (last, 2 if last == 8 else last + 1)

    asyncio.run(run())


def test_every_error_has_a_typed_body() -> None:
    for error in (
        SessionIdError("\ud800"),
        UnknownSessionError("a", "why"),
        SessionExistsError("a"),
        SessionBusyError("a", "is busy"),
        SessionStorageError("a", OSError(28, "No space left on device")),
        BadSessionError("a", "why"),
    ):
        assert isinstance(error, SessionError)
        assert 400 <= error.status < 500
        assert error.body()["error"]["code"]
