"""Connections: those whose requests begin with heads that are too long or too slow are closed, and
nothing is kept of those that are gone."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD_BYTES = 64 * 1024


def bounded(timeout_s: float) -> type[HttpToolsProtocol]:
    """Uvicorn's protocol, which would wait for the rest of a request's head for ever.

    timeout_s: for a head to arrive whole, of the first request since the connection was made.
    """

    class Bounded(HttpToolsProtocol):
        _is_in_head = False
        _num_bytes = 0
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin_to_wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            # Uvicorn's own timer, too: it leaves that where a client has reset the connection.
            self._unset_keepalive_if_required()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._is_in_head, self._num_bytes = True, 0
            self._begin_to_wait()

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            self._stop_waiting()
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_in_head:  # still: a head and the body behind it may come at once
                self._num_bytes += len(data)
                if self._num_bytes > _MOST_HEAD_BYTES:
                    self.transport.close()

        def _begin_to_wait(self) -> None:
            if self._patience is None:
                self._patience = self.loop.call_later(timeout_s, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return Bounded
