"""What a client is told when something is wrong, in the shape that OpenAI's clients read."""

import json
from typing import Any, Literal

ErrorKind = Literal[
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"
]


class ApiError(Exception):
    """An answer other than the one that was asked for.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        kind: OpenAI's type of it.
        param: the field of the request that is to blame.
        code: a name of it for programs.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: ErrorKind = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after_s = param, code, retry_after_s

    def body(self) -> dict[str, Any]:
        """What goes out as JSON."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def encoded(self) -> bytes:
        """The body in ASCII: what a client sent and is told of may hold no valid characters."""
        return json.dumps(self.body()).encode("ascii")

    def headers(self) -> dict[str, str]:
        """Those that go with it."""
        retry = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {"content-type": "application/json", **retry}
