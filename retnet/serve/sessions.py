"""Conversations that clients go on with by name: in memory, and in a folder that outlives it.

All is called in the thread of the event loop; what waits for the disk does so in other threads.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from retnet.checkpoint import CheckpointError, Conversation, StateFormat
from retnet.model import RetNet
from retnet.serve.session_errors import (
    BadSessionError,
    SessionBusyError,
    SessionError,
    SessionExistsError,
    SessionIdError,
    SessionStorageError,
    UnknownSessionError,
)
from retnet.serve.session_files import Session, SessionFiles, Stamp, Stored, is_session_id

# What a session takes beside its state, generously: of empty ones there are not any number.
_LEAST_BYTES = 1024

T = TypeVar("T")


class Turn:
    """A session that is somebody's for as long as they go on with it.

    conversation: as it was before, on the model's device.
    """

    def __init__(
        self, conversation: Conversation, write: Callable[[Conversation], Awaitable[None]]
    ) -> None:
        self.conversation = conversation
        self._write = write
        self._is_over = False

    async def commit(self, conversation: Conversation) -> None:
        """Keep what the session holds from now on; where that fails, it holds what it held before.

        Raises:
            SessionStorageError: for want of room.
            SessionBusyError: where another process has changed the session meanwhile.
        """
        assert not self._is_over, "a turn is over when its context is left"
        await self._write(conversation)
        self.conversation = conversation

    def _end(self) -> None:
        self._is_over = True


class SessionStore:
    """The sessions of a model.

    With a folder, its files are the truth and memory holds copies of those used last; without, the
    sessions used last are all there are.

    Args:
        model: whose conversations they are.
        directory: the folder, which several servers of the model may use; None for none.
        max_bytes: of memory.

    Raises:
        ValueError: for a folder that can't be used, or memory that holds no session.
    """

    def __init__(self, model: RetNet, directory: Path | None, max_bytes: int) -> None:
        self.format = StateFormat(model)
        if directory is None and max_bytes < self.format.state_bytes + 2 * _LEAST_BYTES:
            raise ValueError(
                f"max_bytes must hold a session's {self.format.state_bytes:,} bytes, got "
                f"{max_bytes:,}; give sessions more memory, or a folder"
            )
        self._device = model.backbone.embed_tokens.weight.device
        self._files = None if directory is None else SessionFiles(directory, self.format)
        self._memory = _Memory(max_bytes)
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def num_sessions(self) -> int:
        """How many there are."""
        return len(self._memory) if self._files is None else len(self._files.ids())

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that they take."""
        return self._memory.num_bytes

    def check_free(self, session_id: str) -> None:
        """SessionBusyError for a session that is in a turn, SessionIdError for what no session is
        called."""
        _check_id(session_id)
        if session_id in self._busy:
            raise SessionBusyError(session_id, "is in the middle of a turn; wait for its end")

    async def create(self, session_id: str | None = None) -> Session:
        """A session that holds nothing. session_id: None for one that nobody guesses."""
        return await self._add(session_id, Conversation())

    async def fork(self, session_id: str, new_id: str | None = None) -> Session:
        """A session that holds what another one does, or did before the turn it is in."""
        return await self._add(new_id, (await self._find(session_id)).conversation)

    async def list_all(self) -> list[Session]:
        """All sessions but those whose files can't be used."""
        if self._files is None:
            found = [_described(name, stored) for name, stored in self._memory.items()]
        else:
            found = await asyncio.to_thread(self._files.describe_all)
        return [self._with_use(session) for session in found]

    async def get(self, session_id: str) -> Session:
        """What there is to tell about a session."""
        _check_id(session_id)
        if self._files is None:
            return self._with_use(_described(session_id, await self._find(session_id)))
        return self._with_use(await asyncio.to_thread(self._files.describe, session_id))

    async def delete(self, session_id: str) -> None:
        """Remove a session; also one whose file can't be used."""

        async def delete() -> None:
            if self._files is None:
                await self._find(session_id)
            else:
                await asyncio.to_thread(self._files.delete, session_id)
            self._memory.drop(session_id)

        await self._alone(session_id, delete)

    async def to_bytes(self, session_id: str) -> bytes:
        """What a session holds, as a file; in a turn, what it held before."""
        stored = await self._find(session_id)
        return await asyncio.to_thread(
            self.format.to_bytes, stored.conversation, created=stored.created
        )

    async def from_bytes(self, session_id: str, data: bytes) -> Session:
        """Make a session of a file, or have it hold what the file does."""
        try:
            sent = await asyncio.to_thread(self.format.from_bytes, data, name="the body")
        except CheckpointError as error:
            raise BadSessionError(session_id, error) from error

        async def put() -> Session:
            created, stamp = await self._known(session_id)
            new = Stored(sent, _now() if created is None else created, _now(), stamp)
            return _described(session_id, await self._write(session_id, new))

        return await self._alone(session_id, put)

    @asynccontextmanager
    async def turn(self, session_id: str) -> AsyncIterator[Turn]:
        """A session to go on with, and nobody else meanwhile. Left without a commit, the session is
        as it was before.

        Raises:
            SessionBusyError: where somebody goes on with it already.
            UnknownSessionError: where there is none.
            BadSessionError: where its file is damaged or another model's.
        """
        self._claim(session_id)
        writing: asyncio.Task[None] | None = None
        try:
            before = await self._find(session_id)

            async def write(conversation: Conversation) -> None:
                nonlocal before
                new = Stored(conversation.to("cpu"), before.created, _now(), before.stamp)
                before = await self._write(session_id, new)

            async def commit(conversation: Conversation) -> None:
                nonlocal writing
                writing = self._task(write(conversation))
                await asyncio.shield(writing)

            turn = Turn(before.conversation.to(self._device), commit)
            try:
                yield turn
            finally:
                turn._end()
        finally:
            if writing is None or writing.done():
                self._busy.discard(session_id)
            else:  # who commits is gone, and the session is free when its file has been written
                writing.add_done_callback(lambda _: self._busy.discard(session_id))

    async def _find(self, session_id: str) -> Stored:
        """What is kept of a session."""
        _check_id(session_id)
        kept = self._memory.get(session_id)
        if self._files is None:
            if kept is None:
                raise UnknownSessionError(
                    session_id,
                    "it was never made, has been deleted, or was dropped for others, used later",
                )
            return kept
        stamp = await asyncio.to_thread(self._files.stamp, session_id)
        if kept is not None and kept.stamp == stamp:
            return kept
        self._memory.drop(session_id)
        stored = await asyncio.to_thread(self._files.read, session_id)
        self._memory.put(session_id, stored)
        return stored

    async def _known(self, session_id: str) -> tuple[int | None, Stamp | None]:
        """When a session was created, if it was and that is known, and the stamp of its file."""
        if self._files is None:
            kept = self._memory.get(session_id)
            return (None if kept is None else kept.created), None
        stamp = await asyncio.to_thread(self._files.stamp, session_id)
        try:
            return (await asyncio.to_thread(self._files.describe, session_id)).created, stamp
        except SessionError:
            return None, stamp

    async def _add(self, session_id: str | None, conversation: Conversation) -> Session:
        name = secrets.token_hex(16) if session_id is None else session_id

        async def add() -> Session:
            created, stamp = await self._known(name)
            if created is not None or stamp is not None:
                raise SessionExistsError(name)
            stored = await self._write(name, Stored(conversation, _now(), _now()))
            return _described(name, stored)

        if name in self._busy:
            raise SessionExistsError(name)
        return await self._alone(name, add)

    async def _write(self, session_id: str, new: Stored) -> Stored:
        """Keep a session, in its file first; what is kept."""
        if self._files is None:
            if _size(new) > self._memory.max_bytes:
                raise SessionStorageError(session_id, "it takes more than all memory for sessions")
            self._memory.put(session_id, new, self._busy)
            return new
        stored = await asyncio.to_thread(
            self._files.write, session_id, new.conversation, new.created, new.stamp
        )
        self._memory.put(session_id, stored)
        return stored

    async def _alone(self, session_id: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something with a session while nobody else does; to its end, even if who asked for it
        is gone."""
        self._claim(session_id)
        task = self._task(work())
        task.add_done_callback(lambda _: self._busy.discard(session_id))
        return await asyncio.shield(task)

    def _claim(self, session_id: str) -> None:
        self.check_free(session_id)
        self._busy.add(session_id)

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that isn't forgotten by Python when nobody waits for it any more."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _with_use(self, session: Session) -> Session:
        return replace(session, is_busy=session.id in self._busy)


class _Memory:
    """The sessions used last, within so many bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> list[tuple[str, Stored]]:
        """All, by name."""
        return sorted(self._kept.items(), key=lambda item: item[0])

    def get(self, session_id: str) -> Stored | None:
        """A session, which is used by this."""
        if session_id in self._kept:
            self._kept.move_to_end(session_id)
        return self._kept.get(session_id)

    def put(self, session_id: str, stored: Stored, lasting: Collection[str] = ()) -> None:
        """Keep a session; those used longest ago leave for it, but for some that last."""
        self.drop(session_id)
        self._kept[session_id] = stored
        self.num_bytes += _size(stored)
        for other in [name for name in self._kept if name not in lasting]:
            if self.num_bytes <= self.max_bytes:
                return
            self.drop(other)

    def drop(self, session_id: str) -> None:
        """Forget a session, if it is here."""
        dropped = self._kept.pop(session_id, None)
        self.num_bytes -= 0 if dropped is None else _size(dropped)


def _size(stored: Stored) -> int:
    conversation = stored.conversation
    return conversation.state_bytes + _LEAST_BYTES + 32 * len(conversation.unread)


def _check_id(session_id: str) -> None:
    if not is_session_id(session_id):
        raise SessionIdError(session_id)


def _described(session_id: str, stored: Stored) -> Session:
    told = stored.conversation
    return Session(session_id, stored.created, stored.last_used, told.num_tokens, told.state_bytes)


def _now() -> int:
    return int(time.time())
