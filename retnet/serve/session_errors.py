"""What can be wrong with a session, as clients are told."""

from retnet.serve.errors import ApiError


class SessionError(ApiError):
    """Something is wrong with a session; see its children."""


class SessionIdError(SessionError):
    """No session can have that name."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            400,
            "a session's id must have 1 to 64 letters, digits, - and _, the first a letter or "
            f"digit, got {session_id[:80]!r}",
            param="session_id",
            code="bad_session_id",
        )


class UnknownSessionError(SessionError):
    """There is no such session."""

    def __init__(self, session_id: str, why: str) -> None:
        super().__init__(
            404,
            f"there is no session {session_id!r}: {why}; POST /v1/sessions makes one",
            param="session_id",
            code="session_not_found",
        )


class SessionExistsError(SessionError):
    """A session has that name already."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            409,
            f"there is a session {session_id!r} already; choose another id, or delete it first",
            param="id",
            code="session_exists",
        )


class SessionBusyError(SessionError):
    """Somebody else is at the session."""

    def __init__(self, session_id: str, why: str) -> None:
        super().__init__(
            409, f"session {session_id!r} {why}", param="session_id", code="session_busy"
        )


class SessionStorageError(SessionError):
    """What should be kept has no room, or its folder can't be read or written."""

    def __init__(self, session_id: str, why: object) -> None:
        # None of the 5xx: the server is well, and clients would ask again at once, in vain.
        super().__init__(
            413,
            f"session {session_id!r} can't be kept, and stays as it was: {why}; delete sessions "
            "that are not needed, or have the server's folder for them looked at",
            param="session_id",
            code="session_storage",
        )


class BadSessionError(SessionError):
    """What is kept of a session, or was sent for one, is damaged or another model's."""

    def __init__(self, session_id: str, why: object) -> None:
        super().__init__(
            400,
            f"session {session_id!r} can't be used: {why}",
            param="session_id",
            code="bad_session",
        )
