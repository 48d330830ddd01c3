"""A folder of sessions: a file each, written aside and renamed. Several processes may use it.

Capitals are written as = and the small letter, so that no two sessions have one file where the file
system takes capitals for small letters. Files of other names are left alone.
"""

import io
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from retnet.checkpoint import CheckpointError, Conversation, StateFormat
from retnet.checkpoint.files import replace_files
from retnet.serve.session_errors import (
    BadSessionError,
    SessionBusyError,
    SessionError,
    SessionStorageError,
    UnknownSessionError,
)

_log = logging.getLogger(__name__)

_ENDING = ".safetensors"
_FILE_NAME = re.compile(r"((?:=[a-z]|[a-z0-9_-])+)" + re.escape(_ENDING))
_PART_IS_LEFT_S = 3600

_ITS_FILE = "its file"  # clients are not told where it is

ID_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"

# By what a file is told from one that has replaced it.
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """What is kept of a session.

    created, last_used: Unix seconds; the latter is when the conversation last went on.
    stamp: of the file; None where there is none.
    """

    conversation: Conversation
    created: int
    last_used: int
    stamp: Stamp | None = None


@dataclass(frozen=True)
class Session:
    """What there is to tell about a session; see `Stored`."""

    id: str
    created: int
    last_used: int
    num_tokens: int
    state_bytes: int
    is_busy: bool = False


def is_session_id(text: str) -> bool:
    """Whether a session can have that name."""
    return re.fullmatch(ID_PATTERN, text) is not None


class SessionFiles:
    """The sessions in a folder, which is made if it isn't there. All methods wait for the disk.

    Raises:
        ValueError: for a folder that can't be used.
    """

    def __init__(self, directory: Path, state_format: StateFormat) -> None:
        self._directory, self._format = directory, state_format
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._remove_parts()
        except OSError as error:
            raise ValueError(f"sessions can't be kept in {directory}: {error}") from error
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise ValueError(f"sessions can't be kept in {directory}: it may not be written to")
        for session_id in self.ids():
            try:
                self.describe(session_id)
            except SessionError as error:
                _log.warning("%s", error)

    def ids(self) -> list[str]:
        """Of all sessions, also of those whose files are damaged or another model's."""
        try:
            names = os.listdir(self._directory)
        except OSError as error:
            _log.warning("the folder of sessions can't be read: %s", error)
            return []
        found = (_FILE_NAME.fullmatch(name) for name in names)
        ids = (
            re.sub("=(.)", lambda capital: capital[1].upper(), name[1]) for name in found if name
        )
        return sorted(filter(is_session_id, ids))

    def stamp(self, session_id: str) -> Stamp | None:
        """That of a session's file; None where there is none."""
        try:
            with self._opened(session_id) as file:
                return _when(file)[1]
        except UnknownSessionError:
            return None

    def read(self, session_id: str) -> Stored:
        """A session."""
        with self._opened(session_id) as file, _told_of(session_id):
            modified, stamp = _when(file)
            data = file.read(self._format.most_bytes + 1)
            conversation = self._format.from_bytes(data, name=_ITS_FILE)
            created = self._format.summary(io.BytesIO(data), name=_ITS_FILE).created
        return Stored(conversation, modified if created is None else created, modified, stamp)

    def describe(self, session_id: str) -> Session:
        """What the beginning of a session's file tells."""
        with self._opened(session_id) as file, _told_of(session_id):
            modified, _ = _when(file)
            found = self._format.summary(file, name=_ITS_FILE)
        created = modified if found.created is None else found.created
        return Session(session_id, created, modified, found.num_tokens, found.state_bytes)

    def describe_all(self) -> list[Session]:
        """All that can be used; the log told of others when the server began."""
        found = []
        for session_id in self.ids():
            try:
                found.append(self.describe(session_id))
            except SessionError:
                continue
        return found

    def write(
        self, session_id: str, conversation: Conversation, created: int, before: Stamp | None
    ) -> Stored:
        """Keep a conversation; what was there before stays where that fails.

        before: what the stamp must be, or somebody else has changed the session.
        """
        with _told_of(session_id):
            data = self._format.to_bytes(conversation, created=created)
        if self.stamp(session_id) != before:
            raise SessionBusyError(
                session_id, "was changed or deleted by another process meanwhile; ask again"
            )
        path = self._path(session_id)
        try:
            replace_files({Path(path): lambda aside: aside.write_bytes(data)})
        except OSError as error:
            raise SessionStorageError(session_id, error.strerror or error) from error
        with self._opened(session_id) as file:
            return Stored(conversation, created, *_when(file))

    def delete(self, session_id: str) -> None:
        """Remove a session."""
        try:
            os.unlink(self._path(session_id))
        except FileNotFoundError:
            raise _unknown(session_id) from None
        except OSError as error:
            raise SessionStorageError(session_id, error.strerror or error) from error

    def _path(self, session_id: str) -> str:
        """No Path, which has Python intern each name: interning very many, Python lays its table of
        4 MB anew now and then, in whichever thread, and each thread's heap keeps such a hole."""
        name = re.sub("[A-Z]", lambda capital: f"={capital[0].lower()}", session_id)
        return os.path.join(self._directory, name + _ENDING)

    @contextmanager
    def _opened(self, session_id: str) -> Iterator[BinaryIO]:
        """A session's file, to be read. What is no file but a pipe, say, isn't opened."""
        path = self._path(session_id)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise _unknown(session_id)
            file = open(path, "rb")  # noqa: SIM115, it is closed below
        except FileNotFoundError:
            raise _unknown(session_id) from None
        except OSError as error:
            raise SessionStorageError(session_id, error.strerror or error) from error
        with file:
            yield file

    def _remove_parts(self) -> None:
        """Those that a killed server left behind; others may be writing theirs now."""
        oldest = time.time() - _PART_IS_LEFT_S
        for path in self._directory.glob(f".*{_ENDING}.*.part"):
            with suppress(FileNotFoundError):  # another process is at it too
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _when(file: BinaryIO) -> tuple[int, Stamp]:
    """When a file was written last, in Unix seconds, and its stamp."""
    found = os.fstat(file.fileno())
    stamp = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
    return int(found.st_mtime), stamp


def _unknown(session_id: str) -> UnknownSessionError:
    return UnknownSessionError(session_id, "it was never made, or has been deleted")


@contextmanager
def _told_of(session_id: str) -> Iterator[None]:
    """What is wrong with a file is told as what is wrong with its session."""
    try:
        yield
    except CheckpointError as error:
        raise BadSessionError(session_id, f"{error}") from error
    except OSError as error:
        raise SessionStorageError(session_id, error.strerror or error) from error
